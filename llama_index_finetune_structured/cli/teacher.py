"""Calls to a teacher model: questions about chunks, and their answers through a query engine."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.llms import LLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import BaseNode, MetadataMode
from pydantic import BaseModel

from ..capture.recorder import rejects_path
from ..dataset import CallPolicy, Question, QuestionGenerator, answer_questions, document_hashes
from ..dataset.generate.llm_calls import FailedCall
from ..dataset.splits import unit_hash
from ..descriptors import read_text_file
from ..errors import ConfigurationError, DatasetError, MissingDependencyError, StructuredAnswerError
from ..example import Example
from ..jsonl_store import read_shards

__all__ = ["INVALID_ANSWER", "OPENAI", "TeacherCalls", "hosted_teacher", "read_questions"]

OPENAI = "https://api.openai.com/v1"

INVALID_ANSWER = StructuredAnswerError.__name__
"""The ``error`` of a failed call whose answer did not fit the schema."""

# What a query engine raises for an answer that does not fit, by transport. A call that failed raises
# the client's own error.
_INVALID_ANSWER_ERRORS = {INVALID_ANSWER, "ValidationError", "ValueError"}
_MAX_QUESTIONS_BYTES = 100_000_000  # chosen: about a million questions
_PROMPT_TOKENS = (
    4096  # chosen: room in the context window for prompt text, schema and answer beside the chunks
)


def hosted_teacher(model: str, api_base: str | None, context_tokens: int) -> LLM:
    """The teacher as an LLM with a context window of ``context_tokens`` for chunks, and room for the rest.

    Raises ConfigurationError where OpenAI itself is called and there is no key.
    """
    key = os.environ.get("OPENAI_API_KEY") or (api_base and "none")  # servers of one's own may need no key
    if not key:
        raise ConfigurationError(
            "--teacher needs a key: set OPENAI_API_KEY, or --api-base for a server that needs none"
        )
    try:
        from ..llms.hosted import hosted_llm
    except ImportError as error:
        raise MissingDependencyError(error.name or "openai", "build", "--teacher") from error
    options: dict[str, Any] = {"api_base": api_base or OPENAI, "api_key": key, "temperature": 0.0}
    options["max_retries"] = 0  # CallPolicy retries; LlamaIndex's own retries would multiply with its
    llm = hosted_llm(model, **options)
    needed = context_tokens + _PROMPT_TOKENS
    if llm.metadata.context_window < needed:  # LlamaIndex guesses a small one for names it does not know
        return hosted_llm(model, **options, context_window=needed)
    return llm


def read_questions(path: Path) -> list[Question]:
    """The questions of a text file, one a line, without blank lines. Raises DatasetError if there are none."""
    try:
        lines = read_text_file(path, max_bytes=_MAX_QUESTIONS_BYTES).splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 text (byte {error.start + 1}); save it as UTF-8") from error
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be read ({error.strerror}); expected a file of questions"
        ) from error
    questions = [Question(line.strip()) for line in lines if line.strip()]
    if not questions:
        raise DatasetError(f"{path}: no questions in it; write one a line")
    return questions


@dataclass
class TeacherCalls:
    """Calls to one teacher. Results are kept in ``folder`` and not paid for again.

    ``failures`` are the failed calls so far; ``rejected`` counts answers that are no valid example, ``outdated`` the
    questions that were asked again since a document has changed.
    """

    llm: LLM
    output_cls: type[BaseModel]
    folder: Path
    calls: CallPolicy
    retry_failed: bool
    failures: list[FailedCall] = field(default_factory=list)
    rejected: int = 0
    outdated: int = 0

    @property
    def rejects(self) -> Path:
        """The file of answers that are no valid example, each with the reason."""
        return rejects_path(self.folder / "captured.jsonl")

    def _with_reason(self, failures: Sequence[FailedCall]) -> list[FailedCall]:
        """The failures with the reason from the rejects file; a query engine only reports that one did not fit."""
        rows = (json.loads(line.raw) for line in read_shards(self.rejects)) if self.rejects.exists() else ()
        reasons = {row["example"].get("query"): f"{row['reason']}: {row['detail']}" for row in rows}
        return [
            replace(f, error=INVALID_ANSWER, message=reasons[f.subject])
            if f.error in _INVALID_ANSWER_ERRORS and f.subject in reasons
            else f
            for f in failures
        ]

    def questions(
        self, nodes: Sequence[BaseNode], *, per_chunk: int, limit: int | None, ask_for: str | None, seed: int
    ) -> list[Question]:
        """Questions about the chunks; with ``limit`` about a sample of them that ``seed`` draws."""
        chunks = list(nodes)
        if limit is not None:
            chunks = sorted(chunks, key=lambda node: unit_hash(seed, _text(node)))[: -(-limit // per_chunk)]
        generator = QuestionGenerator(
            self.llm,
            question_gen_query=ask_for or _default_query(self.output_cls, per_chunk),
            num_questions_per_chunk=per_chunk,
            calls=self.calls,
        )
        generated = generator.generate(
            chunks, self.folder / "questions.jsonl", retry_failed=self.retry_failed
        )
        self.failures += generated.failures
        return list(generated.questions[:limit])

    def examples(
        self, nodes: Sequence[BaseNode], retriever: BaseRetriever, questions: Sequence[Question]
    ) -> list[Example]:
        """Send every question to a query engine with ``output_cls``; the valid answers as Examples."""
        engine = RetrieverQueryEngine.from_args(retriever, llm=self.llm, output_cls=self.output_cls)
        report = answer_questions(
            engine,
            questions,
            self.folder / "captured.jsonl",
            output_cls=self.output_cls,
            calls=self.calls,
            retry_failed=self.retry_failed,
            documents=document_hashes(nodes),
        )
        self.failures += self._with_reason(report.failures)
        self.outdated = report.outdated
        answered = {answer.query for answer in report.answers}
        captured = report.load(retrieval_misses="keep") if answered else ()
        examples = [example for example in captured if example.query in answered]
        self.rejected = len(answered - {example.query for example in examples})
        return examples


def _text(node: BaseNode) -> str:
    return node.get_content(metadata_mode=MetadataMode.NONE)


def _default_query(output_cls: type[BaseModel], number: int) -> str:
    """The prompt for questions that the schema can answer: on other questions its fields would stay empty."""
    about = f" ({' '.join(output_cls.__doc__.split())})" if output_cls.__doc__ else ""
    fields = "; ".join(
        f"{name}: {info.description}" if info.description else name
        for name, info in output_cls.model_fields.items()
    )
    return (
        f"Write {number} different questions, one a line, for somebody who has not seen this text: each names "
        f"what it is about, and this text answers it in full with one {output_cls.__name__}{about}, whose "
        f"fields are {fields}."
    )
