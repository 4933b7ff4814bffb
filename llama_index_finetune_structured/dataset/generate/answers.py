"""Questions run through a query engine under capture: the reference's loop, concurrent and resumable."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from pydantic import BaseModel

from ...background import blocking
from ...capture.session import capture
from ...errors import StructuredAnswerError
from ...example import Example, Source, content_hash
from ...formats.wire import source_of
from ..finetune_dataset import FinetuneDataset
from .llm_calls import CallPolicy, Failure, Job, PaidCalls
from .questions import Question

__all__ = ["Answer", "AnswerReport", "aanswer_questions", "answer_questions", "answers_path"]

_EMPTY = "Empty Response"


@dataclass(frozen=True)
class Answer:
    """A question's answer as text (JSON of a structured one) and the chunks that it was given."""

    query: str
    response: str
    sources: tuple[Source, ...]
    node_id: str | None
    document_id: str | None


@dataclass(frozen=True)
class AnswerReport:
    """Answers in the order of the questions, failures, and where the captured Examples are.

    ``paid`` counts this run's queries, attempts included, ``reused`` those answered on disk before.
    """

    answers: tuple[Answer, ...]
    failures: tuple[Failure, ...]
    path: Path
    paid: int
    reused: int

    def load(self) -> FinetuneDataset:
        """The captured Examples in the order of the questions, each once, whatever the run went through."""
        order = {answer.query: place for place, answer in enumerate(self.answers)}
        captured = FinetuneDataset.load(self.path).deduplicate()
        ordered = sorted(captured, key=lambda e: (order.get(e.query or "", len(order)), e.id))
        return FinetuneDataset(
            map(_without_event_id, ordered), duplicates_removed=captured.duplicates_removed
        )

    def pairs(self) -> list[dict[str, Any]]:
        """Rows of query, response, node_id and document_id: pairs for RetrievalAugmentedDatasetBuilder."""
        return [
            {"query": a.query, "response": a.response, "node_id": a.node_id, "document_id": a.document_id}
            for a in self.answers
        ]

    def __str__(self) -> str:
        counts = f"{self.paid} paid, {self.reused} reused, {len(self.failures)} failed"
        failed = [f"  {f.asked!r}: {f.error}: {f.message}" for f in self.failures]
        return "\n".join([f"{len(self.answers)} answers, {counts}", *failed])


def answers_path(path: str | os.PathLike[str]) -> Path:
    """``songs.jsonl`` -> ``songs.answers.jsonl``, beside it: which questions are done."""
    main = Path(path)
    return main.with_name(f"{main.stem}.answers{main.suffix or '.jsonl'}")


async def aanswer_questions(
    query_engine: BaseQueryEngine,
    questions: Iterable[str | Question],
    path: str | os.PathLike[str],
    *,
    output_cls: type[BaseModel] | None = None,
    calls: CallPolicy | None = None,
    retry_failed: bool = False,
    show_progress: bool = True,
) -> AnswerReport:
    """Ask ``query_engine`` every question, capturing its LLM calls as Examples into ``path``.

    One file belongs to one engine: the same call again asks only what has no answer yet; questions that
    failed are asked again with ``retry_failed``. LlamaIndex's silent "Empty Response" counts as a failure.
    """
    jobs: dict[str, Job] = {}
    for given in questions:
        question = given if isinstance(given, Question) else Question(given)
        jobs.setdefault(content_hash(question.text), _job(query_engine, question))
    paid_calls = PaidCalls(answers_path(path), calls or CallPolicy())
    reused = paid_calls.results_for(jobs)
    with capture(path, output_cls=output_cls):
        await paid_calls.run(
            jobs, retry_failed=retry_failed, description="answers", show_progress=show_progress
        )
    answers = tuple(_answer(row) for key in jobs if "result" in (row := paid_calls.rows[key]))
    return AnswerReport(answers, paid_calls.failures(jobs), Path(path), paid_calls.paid, reused)


answer_questions = blocking(aanswer_questions)


def _job(query_engine: BaseQueryEngine, question: Question) -> Job:
    async def call() -> dict[str, Any]:
        response = await query_engine.aquery(question.text)
        text = str(response)
        if not text.strip() or text == _EMPTY:
            raise StructuredAnswerError(
                "the query engine gave an empty response: nothing retrieved, or an answer that did not parse"
            )
        sources = [source_of(node).model_dump(exclude_none=True) for node in response.source_nodes]
        return {"response": text, "sources": sources}

    about = {"query": question.text, "node_id": question.node_id, "document_id": question.document_id}
    return Job(question.text, about, call)


def _without_event_id(example: Example) -> Example:
    """Event ids differ from run to run, the data set must not."""
    metadata = {key: value for key, value in example.metadata.items() if key != "event_id"}
    return example.model_copy(update={"metadata": metadata})


def _answer(row: dict[str, Any]) -> Answer:
    result = row["result"]
    sources = tuple(Source.model_validate(source) for source in result["sources"])
    return Answer(row["query"], result["response"], sources, row["node_id"], row["document_id"])
