# %% [markdown]
# # Distil function calls with `OpenAIFinetuneEngine`
#
# A strong model's function calls are captured and a cheaper model is fine-tuned on them: first alone,
# through a Pydantic program, then through a RAG pipeline over a PDF.
#
# **With a real provider** set `OPENAI_API_BASE` (`https://api.openai.com/v1`, or any server with OpenAI's
# protocol) and `OPENAI_API_KEY`; nothing else changes, and it costs money. Without them a stand-in on
# loopback answers (`loopback.py`): regular expressions in place of a teacher, and "fine-tuned" models that
# give the same answers. It shows how the parts work together, not a gain; `local_lora.py` shows a real gain
# without a key.

# %%
import os
from pathlib import Path

from llama_index.core.callbacks import CallbackManager
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.llms.openai import OpenAI
from llama_index.retrievers.bm25 import BM25Retriever
from loopback import use_openai
from pydantic import BaseModel
from survey import Response, build_pdf, by_chunk, read_chunks

from llama_index_finetune_structured import (
    OpenAIFinetuneEngine,
    OpenAIFineTuningHandler,
    OpenAIPydanticProgram,
    QuestionGenerator,
    answer_questions,
    check,
    compare,
)

TEACHER = os.environ.get("TEACHER_MODEL", "gpt-4.1")
BASE = os.environ.get("BASE_MODEL", "gpt-4.1-mini")
OUTPUT = Path("example-output/openai_functions")
OUTPUT.mkdir(parents=True, exist_ok=True)
use_openai()

# %% [markdown]
# ## 1. Function calls of a program

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
MOVIES = [  # OpenAI takes 10 examples or more
    "The Shining", "The Departed", "Titanic", "Pretty Woman", "Home Alone", "Caged Fury",
    "Edward Scissorhands", "Total Recall", "Ghost", "Tremors", "RoboCop", "Rocky V",
]  # fmt: skip

handler = OpenAIFineTuningHandler()
teacher = OpenAI(model=TEACHER, temperature=0, callback_manager=CallbackManager([handler]))
program = OpenAIPydanticProgram.from_defaults(output_cls=Album, prompt_template_str=PROMPT, llm=teacher)
for movie in MOVIES:
    print(program(movie_name=movie).model_dump_json())
albums = OUTPUT / "albums.jsonl"
handler.save_finetuning_events(albums)  # prints "Wrote 12 examples to ..."

# %% [markdown]
# Check the file before paying: all its problems, and how many tokens will be trained.

# %%
print(check(albums, target="openai", base_model=BASE))

engine = OpenAIFinetuneEngine(BASE, albums)
engine.finetune()  # submits once; run again, the script finds its job
album_llm = engine.get_finetuned_model(temperature=0)  # waits for the job, with a progress bar
print(engine.get_current_job().fine_tuned_model)

tuned_program = OpenAIPydanticProgram.from_defaults(
    output_cls=Album, prompt_template_str=PROMPT, llm=album_llm
)
print(tuned_program(movie_name="Goodfellas"))

# %% [markdown]
# ## 2. Function calls through a RAG pipeline
#
# Questions are generated for each chunk of a paper, the teacher answers them through retrieval, and its prompt
# (question and chunk) and its function call are captured. `pydantic_program_mode="function"` requests
# function calls; by default LlamaIndex would send a JSON schema as `response_format`.

# %%


def function_caller(model):
    """The model, with structured answers as function calls."""
    return OpenAI(model=model, temperature=0, pydantic_program_mode="function")


nodes = read_chunks(build_pdf(OUTPUT / "survey.pdf"), chunk_size=128)
retriever = BM25Retriever.from_defaults(nodes=nodes, similarity_top_k=1)
print(f"{len(nodes)} chunks")

writer = QuestionGenerator(
    function_caller(TEACHER),
    question_gen_query="Write two questions that ask which works are cited for something.",
    num_questions_per_chunk=2,
)
questions = writer.generate(nodes, OUTPUT / "questions.jsonl", show_progress=False)
print(questions, "such as:", questions[0].text)

teacher_engine = RetrieverQueryEngine.from_args(retriever, llm=function_caller(TEACHER), output_cls=Response)
report = answer_questions(
    teacher_engine, questions, OUTPUT / "citations.jsonl", output_cls=Response, show_progress=False
)
print(report)

# %% [markdown]
# The paper is one document, so the split keeps its chunks together instead: a held-out question about a chunk
# seen in training would be too easy.

# %%
data = by_chunk(report.load())
print(data.summary())
train, val = data.split(0.7, group_by="document", seed=0)

engine = OpenAIFinetuneEngine(BASE, train, validation=val)
engine.finetune()
tuned = engine.get_finetuned_model(temperature=0)

# %% [markdown]
# ## 3. Use it in the RAG pipeline and compare

# %%
tuned_engine = RetrieverQueryEngine.from_args(retriever, llm=tuned, output_cls=Response)
base_engine = RetrieverQueryEngine.from_args(retriever, llm=function_caller(BASE), output_cls=Response)

response = tuned_engine.query(val[0].query)
print(val[0].query)
print("tuned:  ", response)
print("source: ", response.source_nodes[0].get_content()[:200])
print("base:   ", base_engine.query(val[0].query))
print("teacher:", teacher_engine.query(val[0].query))

card = compare(
    {"base": base_engine, "tuned": tuned_engine, "teacher": teacher_engine},
    val,
    output_cls=Response,
    show_progress=False,
)
card.print()
print(card.to_html(OUTPUT / "report.html"))
