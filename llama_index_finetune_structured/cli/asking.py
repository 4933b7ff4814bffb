"""A teacher asked: questions about chunks, and their answers through a query engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.llms import LLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import BaseNode
from pydantic import BaseModel

from ..capture.recorder import rejects_path
from ..dataset import CallPolicy, Question, QuestionGenerator, answer_questions
from ..dataset.generate.llm_calls import FailedCall
from ..dataset.splits import unit_hash
from ..errors import DatasetError, StructuredAnswerError
from ..example import Example
from ..jsonl_store import read_shards

__all__ = ["UNFIT", "Asking", "listed_questions"]

UNFIT = StructuredAnswerError.__name__
# What an answer that does not fit raises, by transport; a call that failed raises the client's own.
_OF_UNFIT = {UNFIT, "ValidationError", "ValueError"}


def listed_questions(path: Path) -> list[Question]:
    """A file's questions, one a line; blank lines are left out."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 text (byte {error.start + 1}); save it as UTF-8") from error
    questions = [Question(line.strip()) for line in lines if line.strip()]
    if not questions:
        raise DatasetError(f"{path}: no questions in it; write one a line")
    return questions


@dataclass
class Asking:
    """Calls to one teacher; results are kept in ``folder`` and not paid for again.

    ``failures`` are those of the calls so far, ``rejected`` counts answers that were no valid example.
    """

    llm: LLM
    output_cls: type[BaseModel]
    folder: Path
    calls: CallPolicy
    retry_failed: bool
    failures: list[FailedCall] = field(default_factory=list)
    rejected: int = 0

    @property
    def rejects(self) -> Path:
        """Where answers are that are no valid example, with the reason."""
        return rejects_path(self.folder / "captured.jsonl")

    def _with_reason(self, failures: Sequence[FailedCall]) -> list[FailedCall]:
        """A query engine only says that its answer did not fit; why is among the rejects."""
        rows = (json.loads(line.raw) for line in read_shards(self.rejects)) if self.rejects.exists() else ()
        reasons = {row["example"].get("query"): f"{row['reason']}: {row['detail']}" for row in rows}
        return [
            replace(f, error=UNFIT, message=reasons[f.subject])
            if f.error in _OF_UNFIT and f.subject in reasons
            else f
            for f in failures
        ]

    def questions(
        self, nodes: Sequence[BaseNode], *, per_chunk: int, limit: int | None, ask_for: str | None, seed: int
    ) -> list[Question]:
        """Questions about the chunks; with ``limit`` about a sample of them that ``seed`` draws."""
        chunks = list(nodes)
        if limit is not None:
            chunks = sorted(chunks, key=lambda node: unit_hash(seed, node.node_id))[: -(-limit // per_chunk)]
        generator = QuestionGenerator(
            self.llm,
            question_gen_query=ask_for or _default_query(self.output_cls, per_chunk),
            num_questions_per_chunk=per_chunk,
            calls=self.calls,
        )
        found = generator.generate(chunks, self.folder / "questions.jsonl", retry_failed=self.retry_failed)
        self.failures += found.failures
        return list(found.questions[:limit])

    def examples(self, retriever: BaseRetriever, questions: Sequence[Question]) -> list[Example]:
        """Ask a query engine with ``output_cls`` every question; the valid answers as examples."""
        engine = RetrieverQueryEngine.from_args(retriever, llm=self.llm, output_cls=self.output_cls)
        report = answer_questions(
            engine,
            questions,
            self.folder / "captured.jsonl",
            output_cls=self.output_cls,
            calls=self.calls,
            retry_failed=self.retry_failed,
        )
        self.failures += self._with_reason(report.failures)
        documents = {answer.query: answer.document_id for answer in report.answers}
        captured = report.load() if documents else ()
        examples = [_placed(example, documents) for example in captured if example.query in documents]
        self.rejected = len(documents.keys() - {example.query for example in examples})
        return examples


def _placed(example: Example, documents: dict[str, str | None]) -> Example:
    """A question belongs to the document that it was made from, whatever was retrieved for it."""
    document = documents[example.query or ""]
    return example if document is None else example.model_copy(update={"document_id": document})


def _default_query(output_cls: type[BaseModel], number: int) -> str:
    """Asks for what the schema holds: a quiz on anything else would be answered with empty fields."""
    about = f" ({' '.join(output_cls.__doc__.split())})" if output_cls.__doc__ else ""
    fields = "; ".join(
        f"{name}: {given.description}" if given.description else name
        for name, given in output_cls.model_fields.items()
    )
    return (
        f"Write {number} different questions, one a line, for somebody who has not seen this text: each names "
        f"what it is about, and this text answers it in full with one {output_cls.__name__}{about}, whose "
        f"fields are {fields}."
    )
