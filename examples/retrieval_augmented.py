# %% [markdown]
# # Retrieval-augmented fine-tuning
#
# After RA-DIT (arXiv:2310.01352): for each question and answer, chunks are retrieved and (question + chunk,
# answer) becomes a training row, so that the model learns to answer from retrieved chunks, and to abstain
# where they do not support an answer. Split, fine-tune, use in RAG, evaluate with LlamaIndex's own evaluators.
#
# **With a real provider** set `OPENAI_API_BASE` and `OPENAI_API_KEY`, and give `compare_texts` a real
# embedding model. Without them a stand-in on loopback answers (`loopback.py`), without any model: its teacher
# quotes the best sentence, its base model the whole chunk, its "fine-tuned" models give the teacher's answers,
# and its judge counts common words. To train a model without a provider, use
# `LoraFinetuneEngine(train, validation=val)` in place of `OpenAIFinetuneEngine(...)`.

# %%
import hashlib
import math
import os
import re
from pathlib import Path

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.llms.openai import OpenAI
from llama_index.retrievers.bm25 import BM25Retriever
from loopback import use_openai
from survey import build_pdf, read_chunks

from llama_index_finetune_structured import (
    OpenAIFinetuneEngine,
    QuestionGenerator,
    RetrievalAugmentedDatasetBuilder,
    answer_questions,
    compare_texts,
)

TEACHER = os.environ.get("TEACHER_MODEL", "gpt-4.1")
BASE = os.environ.get("BASE_MODEL", "gpt-4.1-mini")
OUTPUT = Path("example-output/retrieval_augmented")
OUTPUT.mkdir(parents=True, exist_ok=True)
use_openai()

# %% [markdown]
# ## Questions and answers over the paper

# %%
nodes = read_chunks(build_pdf(OUTPUT / "survey.pdf"), chunk_size=128)
retriever = BM25Retriever.from_defaults(nodes=nodes, similarity_top_k=2)
teacher = OpenAI(model=TEACHER, temperature=0)

writer = QuestionGenerator(
    teacher,
    question_gen_query="Write questions that ask what a work is cited for.",
    num_questions_per_chunk=3,
)
questions = writer.generate(nodes, OUTPUT / "questions.jsonl", show_progress=False)
teacher_engine = RetrieverQueryEngine.from_args(retriever, llm=teacher)
report = answer_questions(teacher_engine, questions, OUTPUT / "answers.jsonl", show_progress=False)
print(report)
print(report.pairs()[0])

# %% [markdown]
# ## Rows with retrieved chunks
#
# One row for each chunk (`separate_context`), as in the paper. For a fifth of the questions the supporting
# chunk is removed and the right answer is "The context does not say." The recipe of the rows serves the tuned
# model with the same prompts.

# %%
builder = RetrievalAugmentedDatasetBuilder(
    retriever,
    separate_context=True,
    system_prompt="You answer questions about a survey of learning from text.",
    share_without_support=0.2,
    abstention="The context does not say.",
)
rows = builder.build(report.pairs(), show_progress=False)
print(len(rows), "rows", dict(builder.counts))

# %% [markdown]
# ## Split and fine-tune
#
# All rows of a question, and of a chunk, stay on one side.

# %%
chunk_of = {question.text: question.node_id for question in questions}
train, val = rows.split(0.7, group_by=lambda row: chunk_of[row.query], seed=0)
print(f"{len(train)} rows to train on, {len(val)} to validate")

engine = OpenAIFinetuneEngine(BASE, train, validation=val)
engine.finetune()
tuned = engine.get_finetuned_model(temperature=0, **builder.recipe.llm_kwargs())

# %% [markdown]
# ## Use it in RAG
#
# The query engine gets the plain question and retrieves by itself.

# %%
as_trained = builder.recipe.query_engine_kwargs()
tuned_engine = RetrieverQueryEngine.from_args(retriever, llm=tuned, **as_trained)
base_engine = RetrieverQueryEngine.from_args(retriever, llm=OpenAI(model=BASE, temperature=0), **as_trained)

print(val[0].query)
print("tuned:", tuned_engine.query(val[0].query))
print("base: ", base_engine.query(val[0].query))

# %% [markdown]
# ## Evaluate
#
# Correctness (1 to 5, by a judge) and semantic similarity, on held-out questions and, as a sanity check, on some
# training questions. The embedding below counts words in place of a real one, such as `OpenAIEmbedding()`.

# %%


class WordCounts(BaseEmbedding):
    """Counts of hashed words, as a unit vector."""

    def _get_text_embedding(self, text):
        vector = [0.0] * 512
        for word in re.findall(r"\w+", text.lower()):
            vector[int.from_bytes(hashlib.sha256(word.encode()).digest()[:2], "big") % 512] += 1.0
        length = math.hypot(*vector) or 1.0
        return [value / length for value in vector]

    _get_query_embedding = _get_text_embedding

    async def _aget_query_embedding(self, query):
        return self._get_text_embedding(query)


answers = {answer.query: answer.response for answer in report.answers}


def one_row_each(side, limit):
    """The first row of each question whose right answer is the teacher's own."""
    first = {row.query: row for row in side if row.answer_text() == answers[row.query]}
    return list(first.values())[:limit]


for name, side in (("validation", val), ("training", train)):
    print(name)
    scores = compare_texts(
        {"RAG Fine-tuned LLM": tuned_engine, "Base LLM": base_engine},
        one_row_each(side, 20),
        judge=teacher,
        embed_model=WordCounts(),
    )
    scores.print()
    scores.to_json(OUTPUT / f"{name}.json")
