# %% [markdown]
# # Migrating from `llama-index-finetuning`
#
# The old package can no longer be imported (and `llama-index-llms-gradient` not be installed beside today's
# core), so the old lines are comments here, above their replacements. Names are the same, imports are not.
#
# **With a real provider** set `OPENAI_API_BASE` and `OPENAI_API_KEY`; without them a stand-in on loopback
# answers with regular expressions (`loopback.py`).
#
# ## Imports

# %%
# old: from llama_index.finetuning import OpenAIFinetuneEngine, GradientFinetuneEngine
# old: from llama_index.finetuning.callbacks import OpenAIFineTuningHandler
# old: from llama_index.program.openai import OpenAIPydanticProgram
# old: from llama_index.llms.gradient import GradientBaseModelLLM, GradientModelAdapterLLM
# new: all of them from llama_index_finetune_structured
import os
from pathlib import Path

from llama_index.core.llms import ChatMessage
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.llms.openai import OpenAI
from llama_index.retrievers.bm25 import BM25Retriever
from loopback import use_openai
from survey import Response, build_pdf, read_chunks

from llama_index_finetune_structured import (
    FinetuneDataset,
    OpenAIFinetuneEngine,
    OpenAIFineTuningHandler,
    QuestionGenerator,
    capture,
    check,
)
from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.llms import ServiceContext

TEACHER = os.environ.get("TEACHER_MODEL", "gpt-4.1")
BASE = os.environ.get("BASE_MODEL", "gpt-4.1-mini")
OUTPUT = Path("example-output/migrating")
OUTPUT.mkdir(parents=True, exist_ok=True)
use_openai()

nodes = read_chunks(build_pdf(OUTPUT / "survey.pdf"), chunk_size=128)
retriever = BM25Retriever.from_defaults(nodes=nodes, similarity_top_k=1)

# %% [markdown]
# ## `ServiceContext`
#
# LlamaIndex accepts `service_context=` silently and uses another LLM. Ours raises an error with the replacement.

# %%
# old: context = ServiceContext.from_defaults(llm=OpenAI("gpt-4"), callback_manager=manager)
# old: index.as_query_engine(service_context=context)
try:
    ServiceContext.from_defaults(llm=OpenAI(model=TEACHER))
except ConfigurationError as error:
    print(error)

# %% [markdown]
# ## Questions
#
# The old generator paid again after a crash; this one keeps each chunk's questions on disk.

# %%
# old: generator = DatasetGenerator(nodes, service_context=context, num_questions_per_chunk=1)
# old: questions = await generator.agenerate_questions_from_nodes()
writer = QuestionGenerator(
    OpenAI(model=TEACHER),
    question_gen_query="Write a question that asks which works are cited for something.",
    num_questions_per_chunk=1,
)
questions = writer.generate(nodes, OUTPUT / "questions.jsonl", show_progress=False)
print(questions)

# %% [markdown]
# ## Capturing a query engine
#
# Query engines replace the callback manager of their LLM, so the old handler recorded nothing there.
# `attach` and the context manager `capture` do record; failed calls and answers that do not fit their schema
# are not saved as examples.

# %%
# old: handler = OpenAIFineTuningHandler()
# old: llm = OpenAI(model="gpt-4", callback_manager=CallbackManager([handler]))
# old: query_engine = index.as_query_engine(llm=llm, output_cls=Response)   # 0 events from here
handler = OpenAIFineTuningHandler()
teacher = OpenAI(model=TEACHER)
handler.attach(teacher)
query_engine = RetrieverQueryEngine.from_args(retriever, llm=teacher, output_cls=Response)
captured = OUTPUT / "captured.jsonl"
captured.unlink(missing_ok=True)  # a capture is continued, never replaced
with capture(captured, output_cls=Response):
    for question in questions:
        query_engine.query(question.text)

# old: handler.save_finetuning_events("events.jsonl")
handler.save_finetuning_events(OUTPUT / "events.jsonl")  # the same line, the same file format
print(len(FinetuneDataset.load(captured)), "examples in the capture, which keeps schema, question, sources")

# %% [markdown]
# ## Checking a file
#
# `validate_json(path)` raised TypeError on function calls; `check` names file, line and fix.

# %%
# old: validate_json("events.jsonl")
print(check(OUTPUT / "events.jsonl", target="openai", base_model=BASE))

# %% [markdown]
# ## The engine
#
# The old engine submitted a refused job again every 60 seconds without end. This one submits once, has
# timeouts, and finds its job again when the script is run again.

# %%
# old: engine = OpenAIFinetuneEngine("gpt-3.5-turbo", "events.jsonl", validate_json=False)
# old: engine.finetune()
# old: llm = engine.get_finetuned_model(temperature=0.3)
engine = OpenAIFinetuneEngine(BASE, OUTPUT / "events.jsonl")
engine.finetune()
tuned = engine.get_finetuned_model(temperature=0.3)
print(tuned.chat([ChatMessage(role="user", content="Which citations are there?")]).message.content)
print(RetrieverQueryEngine.from_args(retriever, llm=tuned, output_cls=Response).query(questions[0].text))

# %% [markdown]
# ## Without the provider
#
# OpenAI takes no new jobs after 2027-01-06. The same capture trains a model on your machine:
# `LoraFinetuneEngine(captured)` in place of `OpenAIFinetuneEngine(BASE, ...)`, as in `local_lora.py`.
