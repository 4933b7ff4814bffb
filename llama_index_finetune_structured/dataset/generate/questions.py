"""Generate questions about chunks with an LLM: llama-index's DatasetGenerator, concurrent and resumable."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llama_index.core.llms import LLM
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
from llama_index.core.schema import BaseNode, MetadataMode
from pydantic import BaseModel, Field

from ...background import blocking
from ...errors import ConfigurationError
from ...example import content_hash
from .llm_calls import CallPolicy, FailedCall, LlmCall, LlmCalls

__all__ = ["GeneratedQuestions", "Question", "QuestionGenerator"]

# The prompts of llama_index.core.evaluation.DatasetGenerator, with the indentation that its source has in them.
DEFAULT_TEMPLATE = """\
Context information is below.
---------------------
{context_str}
---------------------
Given the context information and not prior knowledge.
generate only questions based on the below query.
{query_str}
"""
DEFAULT_QUERY = (
    "You are a Teacher/Professor. Your task is to setup                         "
    "{num_questions_per_chunk} questions for an upcoming                         "
    "quiz/examination. The questions should be diverse in nature                             "
    "across the document. Restrict the questions to the                                 "
    "context information provided."
)


@dataclass(frozen=True)
class Question:
    """A question and where it comes from.

    Attributes:
        text: The question.
        node_id: Id of the chunk it was generated from. None: unknown, or several chunks gave the same question.
        document_id: Id of that chunk's document. None: unknown, or several documents gave the same question.
    """

    text: str
    node_id: str | None = None
    document_id: str | None = None


@dataclass(frozen=True)
class GeneratedQuestions(Sequence[Question]):
    """The result of ``QuestionGenerator``, a sequence of its questions.

    Attributes:
        questions: The questions, in the order of their chunks.
        failures: The failed calls.
        duplicates_removed: Number of questions left out because they repeat another one.
        paid: Number of this run's calls, all attempts included.
        reused: Number of chunks whose questions were stored already.
    """

    questions: tuple[Question, ...]
    failures: tuple[FailedCall, ...]
    duplicates_removed: int
    paid: int
    reused: int

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: Any) -> Any:
        return self.questions[index]

    def __str__(self) -> str:
        return (
            f"{len(self)} questions ({self.duplicates_removed} duplicates removed), {self.paid} calls paid, "
            f"{self.reused} reused, {len(self.failures)} failed"
        )


class _QuestionList(BaseModel):
    """Questions that the context answers."""

    questions: list[str] = Field(description="One question each, without numbering.")


class QuestionGenerator:
    """Has an LLM generate questions about each chunk.

    An LLM with function calling returns a list; the answer of any other is read line by line, without numbering.

    Args:
        llm: The LLM that generates the questions.
        question_gen_query: The instruction. None: that of LlamaIndex's DatasetGenerator.
        text_question_template: Combines the chunk (``context_str``) with the instruction (``query_str``).
        num_questions_per_chunk: Questions about each chunk, 1 or more; those beyond this number are dropped.
        metadata_mode: Which metadata of a chunk the LLM sees; by default none.
        calls: Concurrency and retries. None: CallPolicy's defaults.

    Raises:
        ConfigurationError: ``num_questions_per_chunk`` is below 1.
    """

    def __init__(
        self,
        llm: LLM,
        *,
        question_gen_query: str | None = None,
        text_question_template: str | BasePromptTemplate = DEFAULT_TEMPLATE,
        num_questions_per_chunk: int = 10,
        metadata_mode: MetadataMode = MetadataMode.NONE,
        calls: CallPolicy | None = None,
    ) -> None:
        if num_questions_per_chunk < 1:
            raise ConfigurationError(
                f"num_questions_per_chunk: {num_questions_per_chunk!r}, expected 1 or more"
            )
        template = text_question_template
        self._llm = llm
        self._number = num_questions_per_chunk
        self._query = question_gen_query or DEFAULT_QUERY.format(num_questions_per_chunk=self._number)
        self._template = PromptTemplate(template) if isinstance(template, str) else template
        self._metadata_mode = metadata_mode
        self._policy = calls or CallPolicy()
        self._structured = bool(llm.metadata.is_function_calling_model)

    async def agenerate(
        self,
        nodes: Iterable[BaseNode],
        path: str | os.PathLike[str] | None = None,
        *,
        num: int | None = None,
        retry_failed: bool = False,
        show_progress: bool = True,
    ) -> GeneratedQuestions:
        """Generate questions about every chunk.

        Chunks without text are skipped; questions equal but for case and spaces are kept once.

        Args:
            nodes: The chunks.
            path: JSON Lines file that stores each chunk's questions; the same call again reads them and makes only
                the missing LLM calls. None: nothing is stored.
            num: Most chunks and most questions. None: all.
            retry_failed: Whether to repeat the calls that failed in an earlier run.
            show_progress: Whether to show a progress bar.

        Raises:
            CaptureError: ``path`` cannot be written or read.
            DatasetError: ``path`` has a line that is no result of an earlier run.
            ConfigurationError: The synchronous form was called inside asynchronous work of this package.
        """
        chunks = [node for node in nodes if node.get_content(metadata_mode=self._metadata_mode).strip()]
        chunks = chunks if num is None else chunks[:num]
        keyed = [(self._key(node), node) for node in chunks]
        calls: dict[str, LlmCall] = {}
        for key, node in keyed:
            calls.setdefault(key, self._call(node))
        llm_calls = LlmCalls(path, self._policy)
        reused = llm_calls.count_results(calls)
        await llm_calls.run(
            calls, retry_failed=retry_failed, description="questions", show_progress=show_progress
        )
        generated = [q for key, node in keyed for q in _questions(llm_calls.rows[key], node)]
        unique: dict[str, Question] = {}
        for question in generated:
            text = _without_case_and_spaces(question.text)
            unique[text] = _of_both(unique[text], question) if text in unique else question
        return GeneratedQuestions(
            questions=tuple(unique.values())[:num],
            failures=llm_calls.failures(calls),
            duplicates_removed=len(generated) - len(unique),
            paid=llm_calls.paid,
            reused=reused,
        )

    generate = blocking(agenerate)

    def _key(self, node: BaseNode) -> str:
        """A hash of all that decides the answer, under which it is stored."""
        return content_hash(
            {
                "context": node.get_content(metadata_mode=self._metadata_mode),
                "query": self._query,
                "template": self._template.get_template(),
                "number": self._number,
                "model": self._llm.metadata.model_name,
                "structured": self._structured,
            }
        )

    def _call(self, node: BaseNode) -> LlmCall:
        context = node.get_content(metadata_mode=self._metadata_mode)

        async def make() -> dict[str, Any]:
            return {"questions": (await self._generate(context))[: self._number]}

        return LlmCall(self._llm, node.node_id, {"node_id": node.node_id}, make)

    async def _generate(self, context: str) -> list[str]:
        variables = {"context_str": context, "query_str": self._query}
        if not self._structured:
            return list(_lines(await self._llm.apredict(self._template, **variables)))
        answer = await self._llm.astructured_predict(_QuestionList, self._template, **variables)
        return [text for question in answer.questions for text in _lines(question)]


def _lines(text: str) -> Iterator[str]:
    """The questions of an answer, one a line, without numbering or bullets."""
    for line in text.strip().splitlines():
        question = re.sub(r"^\s*(?:\d+[).:\s]|[-*•])\s*", "", line).strip()
        if question:
            yield question


def _of_both(first: Question, other: Question) -> Question:
    """The first of two equal questions, with the origin that they share: either chunk may hold its answer."""
    return replace(
        first,
        node_id=first.node_id if first.node_id == other.node_id else None,
        document_id=first.document_id if first.document_id == other.document_id else None,
    )


def _without_case_and_spaces(text: str) -> str:
    return " ".join(text.casefold().split())


def _questions(row: dict[str, Any], node: BaseNode) -> list[Question]:
    texts = row.get("result", {}).get("questions", [])
    return [Question(text, node.node_id, node.ref_doc_id) for text in texts]
