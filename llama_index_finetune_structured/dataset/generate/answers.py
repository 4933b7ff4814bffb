"""Ask a query engine questions and capture its LLM calls as Examples, concurrently and resumably."""

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
from .llm_calls import CallPolicy, FailedCall, LlmCall, LlmCalls
from .questions import Question

__all__ = ["AnswerReport", "QuestionAnswer", "aanswer_questions", "answer_questions", "answers_path"]

_EMPTY = "Empty Response"  # LlamaIndex's text where nothing was retrieved or an answer did not parse


@dataclass(frozen=True)
class QuestionAnswer:
    """A question, its answer and the chunks retrieved for it.

    Attributes:
        query: The question.
        response: The answer as text, JSON of a structured one.
        sources: The chunks retrieved for it.
        node_id: Chunk that the question was generated from. None: unknown.
        document_id: Document of that chunk. None: unknown.
    """

    query: str
    response: str
    sources: tuple[Source, ...]
    node_id: str | None
    document_id: str | None


@dataclass(frozen=True)
class AnswerReport:
    """The result of ``answer_questions``.

    Attributes:
        answers: Answers in the order of the questions.
        failures: Questions without an answer.
        path: File of the captured Examples.
        paid: Number of this run's queries, all attempts included.
        reused: Number of questions whose answer was stored already.
    """

    answers: tuple[QuestionAnswer, ...]
    failures: tuple[FailedCall, ...]
    path: Path
    paid: int
    reused: int

    def load(self) -> FinetuneDataset:
        """The captured Examples in the order of the questions, each once, also after retries and killed runs.

        Raises:
            DatasetError: ``path`` cannot be read or holds no Examples.
        """
        order = {answer.query: position for position, answer in enumerate(self.answers)}
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
        failed = [f"  {f.subject!r}: {f.error}: {f.message}" for f in self.failures]
        return "\n".join([f"{len(self.answers)} answers, {counts}", *failed])


def answers_path(path: str | os.PathLike[str]) -> Path:
    """The file beside a capture that stores the answers: ``songs.jsonl`` -> ``songs.answers.jsonl``."""
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

    Use one file for one engine: the same call again asks only the questions that have neither an answer nor a
    failure. LlamaIndex's "Empty Response" counts as a failure.

    Args:
        query_engine: The query engine, whose ``aquery`` is called.
        questions: Texts or Questions; equal texts are asked once.
        path: File of the captured Examples. The answers are stored beside it: ``songs.jsonl`` ->
            ``songs.answers.jsonl``.
        output_cls: Class that the captured answers are validated against, see ``capture``.
        calls: Concurrency and retries. None: CallPolicy's defaults.
        retry_failed: Whether to ask those questions again that failed in an earlier run.
        show_progress: Whether to show a progress bar.

    Raises:
        CaptureError: ``path`` or the file of the answers cannot be written, or ``path`` is not a capture.
        DatasetError: The file of the answers has a line that is no result of an earlier run.
        ConfigurationError: The synchronous form was called inside asynchronous work of this package.
    """
    queries: dict[str, LlmCall] = {}
    for item in questions:
        question = item if isinstance(item, Question) else Question(item)
        queries.setdefault(content_hash(question.text), _query(query_engine, question))
    llm_calls = LlmCalls(answers_path(path), calls or CallPolicy())
    reused = llm_calls.count_results(queries)
    with capture(path, output_cls=output_cls):
        await llm_calls.run(
            queries, retry_failed=retry_failed, description="answers", show_progress=show_progress
        )
    answers = tuple(_answer(row) for key in queries if "result" in (row := llm_calls.rows[key]))
    return AnswerReport(answers, llm_calls.failures(queries), Path(path), llm_calls.paid, reused)


answer_questions = blocking(aanswer_questions)


def _query(query_engine: BaseQueryEngine, question: Question) -> LlmCall:
    async def make() -> dict[str, Any]:
        response = await query_engine.aquery(question.text)
        text = str(response)
        if not text.strip() or text == _EMPTY:
            raise StructuredAnswerError(
                "the query engine gave an empty response: nothing retrieved, or an answer that did not parse"
            )
        sources = [source_of(node).model_dump(exclude_none=True) for node in response.source_nodes]
        return {"response": text, "sources": sources}

    metadata = {"query": question.text, "node_id": question.node_id, "document_id": question.document_id}
    return LlmCall(question.text, metadata, make)


def _without_event_id(example: Example) -> Example:
    """Without the event id, which differs from run to run while the data set must not."""
    metadata = {key: value for key, value in example.metadata.items() if key != "event_id"}
    return example.model_copy(update={"metadata": metadata})


def _answer(row: dict[str, Any]) -> QuestionAnswer:
    result = row["result"]
    sources = tuple(Source.model_validate(source) for source in result["sources"])
    return QuestionAnswer(row["query"], result["response"], sources, row["node_id"], row["document_id"])
