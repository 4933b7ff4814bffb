# %% [markdown]
# # Distil text prompts with `GradientFinetuneEngine`
#
# The same two tasks as in `openai_functions.py` for a student without function calls: the schema is in the
# prompt and the answer is JSON text. The teacher gets the same prompts, so that the student is trained on
# exactly the prompts it will be served.
#
# **With real providers** set `OPENAI_API_BASE` and `OPENAI_API_KEY` for the teacher, and `GRADIENT_API_URL`,
# `GRADIENT_ACCESS_TOKEN` and `GRADIENT_WORKSPACE_ID` for a server with Gradient's protocol (Gradient's own
# service is retired; `finetune-structured serve` is one, at `http://127.0.0.1:8000/api`, with
# `BASE_MODEL=smollm2-135m-instruct`). Without them stand-ins on loopback answer (`loopback.py`), with regular
# expressions in place of models: the tuned one gives the teacher's answers, the base one answers with prose.

# %%
import logging
import os
from pathlib import Path

from llama_index.core.callbacks import CallbackManager
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.program import LLMTextCompletionProgram
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.llms.openai import OpenAI
from llama_index.retrievers.bm25 import BM25Retriever
from loopback import use_gradient, use_openai
from pydantic import BaseModel
from survey import Response, build_pdf, by_chunk, read_chunks

from llama_index_finetune_structured import (
    GradientAIFineTuningHandler,
    GradientBaseModelLLM,
    GradientFinetuneEngine,
    QuestionGenerator,
    answer_questions,
    compare,
    text_mode,
)

TEACHER = os.environ.get("TEACHER_MODEL", "gpt-4.1")
BASE = os.environ.get("BASE_MODEL", "llama2-7b-chat")
OUTPUT = Path("example-output/gradient_text_prompts")
OUTPUT.mkdir(parents=True, exist_ok=True)
use_openai()
use_gradient()

# %% [markdown]
# ## 1. Text prompts of a program

# %%


class Song(BaseModel):
    """Data model for a song."""

    title: str
    length_seconds: int


class Album(BaseModel):
    """Data model for an album."""

    name: str
    artist: str
    songs: list[Song]


PROMPT = (
    "Generate an example album, with an artist and a list of songs. "
    "Using the movie {movie_name} as inspiration."
)
MOVIES = [
    "The Shining", "The Departed", "Titanic", "Pretty Woman", "Home Alone", "Caged Fury",
    "Edward Scissorhands", "Total Recall", "Ghost", "Tremors", "RoboCop", "Rocky V",
]  # fmt: skip


def album_program(llm):
    """The schema goes into the prompt, the answer comes back as text."""
    return LLMTextCompletionProgram.from_defaults(
        output_parser=PydanticOutputParser(Album), prompt_template_str=PROMPT, llm=llm
    )


handler = GradientAIFineTuningHandler()
program = album_program(OpenAI(model=TEACHER, temperature=0, callback_manager=CallbackManager([handler])))
for movie in MOVIES:
    print(program(movie_name=movie).model_dump_json())
albums = OUTPUT / "albums.jsonl"
handler.save_finetuning_events(albums)  # {"inputs": the prompt that will be served + the answer}

# %%
engine = GradientFinetuneEngine(base_model_slug=BASE, name="movies_structured", data_path=albums)
print(engine.model_adapter_id)
for _epoch in range(2):  # each finetune() is one epoch
    engine.finetune()
album_llm = engine.get_finetuned_model(max_tokens=500)
print(album_program(album_llm)(movie_name="Goodfellas"))

base_llm = GradientBaseModelLLM(base_model_slug=BASE, max_tokens=500, is_chat_model=True)
try:
    print(album_program(base_llm)(movie_name="Goodfellas"))
except ValueError as error:
    print("the base model's answer does not parse:", error)

# %% [markdown]
# ## 2. Text prompts through a RAG pipeline

# %%
nodes = read_chunks(build_pdf(OUTPUT / "survey.pdf"), chunk_size=128)
retriever = BM25Retriever.from_defaults(nodes=nodes, similarity_top_k=1)
writer = QuestionGenerator(
    OpenAI(model=TEACHER, temperature=0),
    question_gen_query="Write two questions that ask which works are cited for something.",
    num_questions_per_chunk=2,
)
questions = writer.generate(nodes, OUTPUT / "questions.jsonl", show_progress=False)

teacher = text_mode(OpenAI(model=TEACHER, temperature=0))  # schema in the prompt, no function calls
teacher_engine = RetrieverQueryEngine.from_args(retriever, llm=teacher, output_cls=Response)
report = answer_questions(
    teacher_engine, questions, OUTPUT / "citations.jsonl", output_cls=Response, show_progress=False
)
print(report)

train, val = by_chunk(report.load()).split(0.7, group_by="document", seed=0)
engine = GradientFinetuneEngine(base_model_slug=BASE, name="citations_structured", data_path=train)
for _epoch in range(2):
    engine.finetune()

# %% [markdown]
# ## 3. Use it in the RAG pipeline
#
# LlamaIndex turns the base model's parse failure into "Empty Response"; the scorecard counts that as invalid.
# The traceback that LlamaIndex logs with it is not shown here.

# %%
logging.getLogger("llama_index").setLevel(logging.ERROR)
tuned = engine.get_finetuned_model(max_tokens=500)
tuned_engine = RetrieverQueryEngine.from_args(retriever, llm=tuned, output_cls=Response)
base_engine = RetrieverQueryEngine.from_args(retriever, llm=base_llm, output_cls=Response)
print("tuned:", tuned_engine.query(val[0].query))
print("base: ", base_engine.query(val[0].query))

card = compare(
    {"base": base_engine, "tuned": tuned_engine, "teacher": teacher_engine},
    val,
    output_cls=Response,
    show_progress=False,
)
card.print()
print(card.to_html(OUTPUT / "report.html"))
