"""Ask a query engine questions and capture its LLM calls as Examples, concurrently and resumably."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from llama_index.core.base.base_query_engine import BaseQueryEngine
from pydantic import BaseModel

from ...background import blocking
from ...capture.labels import labelled
from ...capture.session import capture
from ...errors import DatasetError, StructuredAnswerError
from ...example import Example, Source, content_hash
from ...formats.wire import source_of
from ...printable import package_logger, printable
from ..finetune_dataset import FinetuneDataset
from .llm_calls import CallPolicy, FailedCall, LlmCall, LlmCalls
from .misses import CONTEXT_KEY, RetrievalMisses, is_miss, settle_misses
from .questions import Question

__all__ = ["AnswerReport", "QuestionAnswer", "aanswer_questions", "answer_questions", "answers_path"]

_log = package_logger(__name__)
# In the metadata of a captured Example, the query that it was captured in.
_ANSWER_ID = "answer_id"
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
        retrieved: Whether that chunk (or, where only the document is known, a chunk of it) was retrieved; without
            it, the answer comes from elsewhere. None: unknown.
        answer_id: Id of the call that gave the answer, which the captured Examples carry too.
    """

    query: str
    response: str
    sources: tuple[Source, ...]
    node_id: str | None
    document_id: str | None
    retrieved: bool | None = None
    answer_id: str | None = None


@dataclass(frozen=True)
class AnswerReport:
    """The result of ``answer_questions``.

    Attributes:
        answers: Answers in the order of the questions.
        failures: Questions without an answer.
        path: File of the captured Examples.
        paid: Number of this run's queries, all attempts included.
        reused: Number of questions whose answer was stored already.
        outdated: Number of questions asked again because a document has changed.
        renamed: Documents that are called otherwise now than when they were retrieved: old id to new.
    """

    answers: tuple[QuestionAnswer, ...]
    failures: tuple[FailedCall, ...]
    path: Path
    paid: int
    reused: int
    outdated: int = 0
    renamed: Mapping[str, str] = field(default_factory=dict)

    @property
    def misses(self) -> tuple[QuestionAnswer, ...]:
        """Answers given without the question's own chunk in the prompt; such rows train inventing."""
        return tuple(answer for answer in self.answers if answer.retrieved is False)

    def load(
        self, *, retrieval_misses: RetrievalMisses = "drop", abstention: str | None = None
    ) -> FinetuneDataset:
        """The captured Examples in the order of the questions, each once, also after retries and killed runs.

        Their ``document_id`` is that of the question, where it is known. Where the question's chunk is known,
        ``metadata["context"]`` is "with_support" or "support_missed".

        Args:
            retrieval_misses: What becomes of the answers in ``misses``. "drop": they are left out; "abstain":
                ``abstention`` replaces the answer; "keep": they stay. All stay in the file at ``path``.
            abstention: Answer that says that the context lacks it, as text: JSON where the answer has a schema.

        Raises:
            ConfigurationError: ``retrieval_misses`` is none of these, or "abstain" without ``abstention``.
            DatasetError: ``path`` cannot be read or holds no Examples, or all of them are left out.
        """
        captured = FinetuneDataset.load(self.path)
        placed = [(place, example) for example in captured if (place := self._place(example)) is not None]
        placed.sort(key=lambda item: (item[0], item[1].id))
        answers = [*self.answers, None]
        unique = FinetuneDataset(
            self._of_question(example, answers[place]) for place, example in placed
        ).deduplicate()
        settled = list(settle_misses(unique, retrieval_misses, abstention))
        missed = sum(map(is_miss, unique))
        if missed and retrieval_misses == "drop":
            _log.warning(
                "%d of %d answers were given without the question's own chunk in the prompt and are left out: raise "
                "the retriever's top_k, or load(retrieval_misses='keep')",
                missed,
                len(unique),
            )
        if missed and not settled:
            raise DatasetError(
                f"{self.path}: no example is left: all {missed} answers were given without the question's own chunk "
                "in the prompt; raise the retriever's top_k, or pass retrieval_misses='keep'"
            )
        return FinetuneDataset(settled, duplicates_removed=unique.duplicates_removed)

    def _place(self, example: Example) -> int | None:
        """The position of the example's answer, the end if it is unknown; None: the call gave none that is in use."""
        call = example.metadata.get(_ANSWER_ID)
        if call is None:  # the engine called its LLM from a thread outside of its own context
            return self._by_query.get(example.query or "", len(self.answers))
        return self._by_call.get(str(call))

    def _of_question(self, example: Example, answer: QuestionAnswer | None) -> Example:
        """The example with what is known of its question, and without the ids that differ from run to run."""
        metadata = {
            key: value for key, value in example.metadata.items() if key not in ("event_id", _ANSWER_ID)
        }
        sources = tuple(_renamed(source, self.renamed) for source in example.sources)
        update: dict[str, Any] = {"metadata": metadata, "sources": sources}
        document = example.document_id or ""
        update["document_id"] = self.renamed.get(document, example.document_id)
        if answer is not None and answer.retrieved is not None:
            metadata[CONTEXT_KEY] = "with_support" if answer.retrieved else "support_missed"
        if answer is not None and answer.document_id is not None:
            update["document_id"] = answer.document_id
        return example.model_copy(update=update)

    @cached_property
    def _by_call(self) -> dict[str | None, int]:
        return {answer.answer_id: position for position, answer in enumerate(self.answers)}

    @cached_property
    def _by_query(self) -> dict[str, int]:
        return {answer.query: position for position, answer in enumerate(self.answers)}

    def pairs(self, *, retrieval_misses: Literal["drop", "keep"] = "drop") -> list[dict[str, Any]]:
        """Rows of query, response, node_id and document_id: pairs for RetrievalAugmentedDatasetBuilder.

        Args:
            retrieval_misses: Whether the answers in ``misses`` are left out ("drop") or stay ("keep").
        """
        return [
            {"query": a.query, "response": a.response, "node_id": a.node_id, "document_id": a.document_id}
            for a in self.answers
            if a.retrieved is not False or retrieval_misses == "keep"
        ]

    def __str__(self) -> str:
        counts = f"{self.paid} paid, {self.reused} reused, {len(self.failures)} failed"
        outdated = [f"  {self.outdated} asked again, since a document has changed"] if self.outdated else []
        missed = [f"  {len(self.misses)} without the question's own chunk"] if self.misses else []
        failed = [f"  {f.subject!r}: {f.error}: {f.message}" for f in self.failures]
        return printable("\n".join([f"{len(self.answers)} answers, {counts}", *outdated, *missed, *failed]))


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
    documents: Mapping[str, str] | None = None,
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
        documents: Hash of each document's text by the document's id (``document_hashes``). An answer that is stored
            is asked for again where the question's document, or, if that is unknown, one that was retrieved for it,
            is no longer among them; a renamed document still is. None: stored answers are kept.
        show_progress: Whether to show a progress bar.

    Raises:
        CaptureError: ``path`` or the file of the answers cannot be written, or ``path`` is not a capture.
        DatasetError: The file of the answers has a line that is no result of an earlier run.
        ConfigurationError: The synchronous form was called inside asynchronous work of this package.
    """
    hashes = documents or {}
    asked: dict[str, Question] = {}
    for item in questions:
        question = item if isinstance(item, Question) else Question(item)
        asked.setdefault(content_hash(question.text), question)
    llm_calls = LlmCalls(answers_path(path), calls or CallPolicy())
    rows = llm_calls.rows
    outdated = {key for key in asked if documents is not None and _is_outdated(rows.get(key), hashes)}
    queries = {key: _query(query_engine, question, hashes, rows.get(key)) for key, question in asked.items()}
    reused = llm_calls.count_results({key: call for key, call in queries.items() if key not in outdated})
    with capture(path, output_cls=output_cls):
        await llm_calls.run(
            queries,
            retry_failed=retry_failed,
            description="answers",
            show_progress=show_progress,
            outdated=outdated,
        )
    answered = {key: row for key in asked if "result" in (row := llm_calls.rows[key])}
    renamed = _renamed_documents(answered.values(), hashes)
    answers = tuple(_answer(row, asked[key], renamed) for key, row in answered.items())
    return AnswerReport(
        answers, llm_calls.failures(queries), Path(path), llm_calls.paid, reused, len(outdated), renamed
    )


answer_questions = blocking(aanswer_questions)


def _query(
    query_engine: BaseQueryEngine,
    question: Question,
    hashes: Mapping[str, str],
    earlier: Mapping[str, Any] | None,
) -> LlmCall:
    # Another id than that of an earlier outcome (outdated, or failed), whose Examples stay in the captured file.
    answer_id = content_hash([question.text, earlier])

    async def make() -> dict[str, Any]:
        with labelled(**{_ANSWER_ID: answer_id}):
            response = await query_engine.aquery(question.text)
        text = str(response)
        if not text.strip() or text == _EMPTY:
            raise StructuredAnswerError(
                "the query engine gave an empty response: nothing retrieved, or an answer that did not parse"
            )
        sources = [source_of(node).model_dump(exclude_none=True) for node in response.source_nodes]
        retrieved = _known(hashes, (source.get("document_id") for source in sources))
        return {"response": text, "sources": sources, "documents": retrieved, "answer_id": answer_id}

    metadata = {"query": question.text, "node_id": question.node_id, "document_id": question.document_id}
    own = _known(hashes, [question.document_id])
    return LlmCall(query_engine, question.text, {**metadata, "documents": own}, make)


def _known(hashes: Mapping[str, str], documents: Iterable[str | None]) -> dict[str, str]:
    """The documents whose hash is known, with it."""
    return {name: hashes[name] for name in documents if name is not None and name in hashes}


def _is_outdated(row: dict[str, Any] | None, hashes: Mapping[str, str]) -> bool:
    """Whether a stored outcome rests on a text that no document has any more."""
    if row is None:
        return False
    rests_on = row.get("documents") or row.get("result", {}).get("documents") or {}
    return not set(rests_on.values()) <= set(hashes.values())


def _renamed_documents(rows: Iterable[dict[str, Any]], hashes: Mapping[str, str]) -> dict[str, str]:
    """Old name -> new name of the retrieved documents whose text is under another name now."""
    names = {text: name for name, text in hashes.items()}
    retrieved = [item for row in rows for item in row["result"].get("documents", {}).items()]
    return {old: names[text] for old, text in retrieved if old not in hashes and text in names}


def _renamed(source: Source, renamed: Mapping[str, str]) -> Source:
    old = source.document_id or ""
    if old not in renamed:
        return source
    chunk = (
        renamed[old] + source.node_id.removeprefix(old)
        if source.node_id.startswith(f"{old}#")
        else source.node_id
    )
    return source.model_copy(update={"document_id": renamed[old], "node_id": chunk})


def _answer(row: dict[str, Any], question: Question, renamed: Mapping[str, str]) -> QuestionAnswer:
    """The answer in a stored row, for the question as it is asked now: its document may have another name."""
    result = row["result"]
    sources = [Source.model_validate(source) for source in result["sources"]]
    return QuestionAnswer(
        query=question.text,
        response=result["response"],
        sources=tuple(_renamed(source, renamed) for source in sources),
        node_id=question.node_id,
        document_id=question.document_id,
        retrieved=_is_retrieved(row, sources),
        answer_id=result.get("answer_id"),
    )


def _is_retrieved(row: dict[str, Any], sources: Sequence[Source]) -> bool | None:
    if row["node_id"] is not None:
        return any(source.node_id == row["node_id"] for source in sources)
    if row["document_id"] is not None:
        return any(source.document_id == row["document_id"] for source in sources)
    return None
