"""One complete run of questions and answers, importable by a child process that is killed and restarted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.llms.openai import OpenAI
from pydantic import BaseModel

from llama_index_finetune_structured.dataset import CallPolicy, QuestionGenerator, answer_questions
from llama_index_finetune_structured.dataset.generate.answers import AnswerReport
from llama_index_finetune_structured.dataset.generate.questions import GeneratedQuestions
from llama_index_finetune_structured.example import content_hash

CONCURRENCY = 8


class Card(BaseModel):
    """A short answer."""

    word: str


def chunks(count: int) -> list[TextNode]:
    return [TextNode(id_=f"node {n}", text=f"chunk number {n}") for n in range(count)]


class WordRetriever(BaseRetriever):
    """The chunk whose number the question names."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        number = query_bundle.query_str.split(" of ")[-1]
        return [NodeWithScore(node=TextNode(id_=f"node {number}", text=f"chunk number {number}"), score=0.5)]


def reply(request: dict[str, Any]) -> dict[str, Any]:
    """Ten questions about the chunk, or the answer to one; depends on the content of the request alone."""
    prompt = request["messages"][-1]["content"]
    if "Teacher/Professor" in prompt:
        number = prompt.split("chunk number ")[1].split("\n")[0]
        questions = [f"What is part {n} of {number}" for n in range(10)]
        return {"content": json.dumps({"questions": questions})}
    return {"content": json.dumps({"word": content_hash(prompt)[:8]})}


def run(api_base: str, folder: str, chunk_count: int) -> tuple[GeneratedQuestions, AnswerReport]:
    llm = OpenAI(model="gpt-4o-mini", api_base=api_base, api_key="sk-test", max_retries=0)
    policy = CallPolicy(concurrency=CONCURRENCY, backoff_s=0)
    generator = QuestionGenerator(llm, num_questions_per_chunk=10, calls=policy)
    questions = generator.generate(chunks(chunk_count), Path(folder) / "questions.jsonl", show_progress=False)
    engine = RetrieverQueryEngine.from_args(WordRetriever(), llm=llm, output_cls=Card)
    path = Path(folder) / "captured.jsonl"
    report = answer_questions(engine, questions, path, output_cls=Card, calls=policy, show_progress=False)
    return questions, report
