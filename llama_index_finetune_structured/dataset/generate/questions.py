"""Questions about chunks, asked for from an LLM: the reference's DatasetGenerator, resumable."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llama_index.core.llms import LLM
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
from llama_index.core.schema import BaseNode, MetadataMode
from pydantic import BaseModel, Field

from ...background import blocking
from ...errors import ConfigurationError
from ...example import content_hash
from .llm_calls import CallPolicy, Failure, Job, PaidCalls

__all__ = ["GeneratedQuestions", "Question", "QuestionGenerator"]

# The reference's prompts (llama_index.core.evaluation.DatasetGenerator), its indentation included.
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
    """A question and the chunk it was asked about."""

    text: str
    node_id: str | None = None
    document_id: str | None = None


@dataclass(frozen=True)
class GeneratedQuestions(Sequence[Question]):
    """The questions, in the order of their chunks, and what failed.

    ``paid`` counts this run's calls, ``reused`` the chunks whose questions were on disk.
    """

    questions: tuple[Question, ...]
    failures: tuple[Failure, ...]
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
    """Asks ``llm`` for ``num_questions_per_chunk`` questions about each chunk.

    ``question_gen_query`` says what to ask for, ``text_question_template`` puts it under the chunk
    (``context_str``, ``query_str``). An LLM with function calling answers with a list; any other with lines,
    whose numbering is taken off. More questions than asked for are dropped.
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
        """Ask about every chunk; with ``num`` at most that many chunks, and questions.

        ``path`` (JSONL) keeps each chunk's questions; the same call again reads them from there and goes on.
        """
        chunks = [node for node in nodes if node.get_content(metadata_mode=self._metadata_mode).strip()]
        chunks = chunks if num is None else chunks[:num]
        keyed = [(self._key(node), node) for node in chunks]
        jobs: dict[str, Job] = {}
        for key, node in keyed:
            jobs.setdefault(key, self._job(node))
        calls = PaidCalls(path, self._policy)
        reused = calls.results_for(jobs)
        await calls.run(jobs, retry_failed=retry_failed, description="questions", show_progress=show_progress)
        asked = [q for key, node in keyed for q in _questions(calls.rows[key], node)]
        unique = {_normal(question.text): question for question in reversed(asked)}
        kept = [question for question in asked if unique[_normal(question.text)] is question]
        removed = len(asked) - len(kept)
        return GeneratedQuestions(tuple(kept[:num]), calls.failures(jobs), removed, calls.paid, reused)

    generate = blocking(agenerate)

    def _key(self, node: BaseNode) -> str:
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

    def _job(self, node: BaseNode) -> Job:
        context = node.get_content(metadata_mode=self._metadata_mode)

        async def call() -> dict[str, Any]:
            return {"questions": (await self._ask(context))[: self._number]}

        return Job(node.node_id, {"node_id": node.node_id}, call)

    async def _ask(self, context: str) -> list[str]:
        filled = {"context_str": context, "query_str": self._query}
        if not self._structured:
            return list(_lines(await self._llm.apredict(self._template, **filled)))
        answer = await self._llm.astructured_predict(_QuestionList, self._template, **filled)
        return [text for question in answer.questions for text in _lines(question)]


def _lines(text: str) -> Iterator[str]:
    """The questions of an answer in lines, numbering or bullets taken off."""
    for line in text.strip().splitlines():
        question = re.sub(r"^\s*(?:\d+[).:\s]|[-*•])\s*", "", line).strip()
        if question:
            yield question


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())


def _questions(row: dict[str, Any], node: BaseNode) -> list[Question]:
    texts = row.get("result", {}).get("questions", [])
    return [Question(text, node.node_id, node.ref_doc_id) for text in texts]
