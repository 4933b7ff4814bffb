"""Build retrieval-augmented rows: each question with the chunks that a retriever returns for it.

Two modes, as in LlamaIndex's notebooks: one row with all chunks joined, or one row for each chunk. Further,
after RA-DIT (arXiv:2310.01352) and RAFT (arXiv:2403.10131): distractors from the same retriever, rows without
the supporting chunk, rows without any context.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import BaseNode, NodeWithScore
from pydantic import BaseModel

from ...errors import ConfigurationError, DatasetError, MissingDependencyError
from ...example import Example, Message
from ...formats.registry import training_lines
from ...formats.wire import source_of
from ...jsonl import one_line_reason, save_lines
from ...printable import package_logger
from ...progress_bar import progress_bar
from ..finetune_dataset import FinetuneDataset
from ..labels import AnswerShape
from ..pairs import Pair, PairSource, read_pairs
from ..splits import unit_hash
from .misses import CONTEXT_KEY, ContextKind, RetrievalMisses, check_misses, settle_misses
from .recipe import DEFAULT_QA_TEMPLATE, ServingRecipe, context_text, template_text

__all__ = ["RetrievalAugmentedDatasetBuilder", "bm25_retriever"]

_log = package_logger(__name__)
# Keys of ``counts``, which are logged.
_SKIPPED = "questions skipped: nothing retrieved"
_DISTRACTOR = "rows whose only chunk does not support the answer, left out; retrieval_misses decides"
_MISSED = "questions whose supporting chunk was not retrieved; raise the retriever's top_k"
_FEW_DISTRACTORS = "fewer distractors retrieved than requested; raise the retriever's top_k"
_SUPPORT_KEPT = (
    "the supporting chunk could not be removed: nothing else was retrieved; raise the retriever's top_k"
)


@dataclass(frozen=True)
class _Context:
    """The chunks of a row, in the retriever's order; ``notes`` are keys of ``counts``."""

    nodes: list[NodeWithScore]
    kind: ContextKind
    document_id: str | None
    notes: tuple[str, ...] = ()


class RetrievalAugmentedDatasetBuilder:
    """Turns (question, answer) pairs into training rows whose prompts contain retrieved chunks.

    The supporting chunks are those a pair names (``node_id``, ``document_id``, a captured example's sources); of a
    pair that names none, all chunks of the first result's document. ``recipe`` has the settings for serving the same
    prompts; ``counts`` what the last build made, skipped and missed (reason -> count).

    Args:
        retriever: The retriever that will serve. None: only with ``share_without_context=1.0``.
        separate_context: Whether to make k rows of question and chunk_i -> answer, instead of one row with the
            chunks joined. Where the pair names its support, ``retrieval_misses`` also decides on rows of other chunks.
        qa_template: Text with ``{context_str}`` and ``{query_str}``.
        system_prompt: System message of every row. None: there is none.
        output_cls: Class that the answers are validated against. None: a Pydantic answer has its own class, other
            answers may be any text.
        retrieval_misses: What becomes of a row whose supporting chunk is known and not in the prompt. "drop": it is
            left out; "abstain": ``abstention`` is its answer; "keep": it trains answering from memory, as RA-DIT does
            on purpose.
        distractors: Keep the supporting chunks and this many others of the retriever's list. 0: the whole list.
        share_without_support: Share of questions, 0 to 1, whose supporting chunks are removed.
        abstention: Answer of the rows without support, such as "I do not know.". None: those of
            ``share_without_support`` keep their answer, which trains answering from memory.
        share_without_context: Share of questions, 0 to 1, without any chunk; 1.0 trains the knowledge itself.
        seed: A hash of seed and question decides which share a question belongs to: the same pairs give the same
            rows in any order.

    Raises:
        ConfigurationError: A setting is out of range, the template lacks a placeholder, ``abstention`` is no valid
            answer or missing, or a retriever is missing.
    """

    def __init__(
        self,
        retriever: BaseRetriever | None,
        *,
        separate_context: bool = False,
        qa_template: str | PromptTemplate = DEFAULT_QA_TEMPLATE,
        system_prompt: str | None = None,
        output_cls: type[BaseModel] | None = None,
        retrieval_misses: RetrievalMisses = "drop",
        distractors: int = 0,
        share_without_support: float = 0.0,
        abstention: Any = None,
        share_without_context: float = 0.0,
        seed: int = 0,
    ) -> None:
        _check_settings(share_without_support, share_without_context, distractors, retriever)
        check_misses(retrieval_misses, abstention)
        self._retriever = retriever
        self._retrieval_misses = retrieval_misses
        self._shape = AnswerShape(output_cls, None)
        self._abstention = None if abstention is None else _abstention_text(abstention, self._shape)
        self._distractors = distractors
        self._share_without_context = share_without_context
        self._share_without_support = share_without_support
        self._seed = seed
        self.recipe = ServingRecipe(
            qa_template=None if share_without_context == 1 else template_text(qa_template),
            system_prompt=system_prompt,
            separate_context=separate_context,
        )
        self._metadata = self.recipe.metadata()
        self.counts: Counter[str] = Counter()

    def build(self, pairs: PairSource, *, show_progress: bool = True) -> FinetuneDataset:
        """All rows, in memory; ``write`` is for more rows than fit.

        Args:
            pairs: A file (JSON Lines of ``query``, ``response``, ``node_id``, ``document_id`` or of Examples, or a
                QueryResponseDataset's JSON), a QueryResponseDataset, or tuples, mappings or Examples.
            show_progress: Whether to show a progress bar.

        Raises:
            DatasetError: There are no pairs, or one does not fit; the message names it.
        """
        return FinetuneDataset(self.stream(pairs, show_progress=show_progress))

    async def abuild(
        self, pairs: PairSource, *, concurrency: int = 8, show_progress: bool = True
    ) -> FinetuneDataset:
        """As ``build``, with several retrievals in progress at a time.

        Args:
            pairs: As for ``build``.
            concurrency: Most retrievals in progress at a time.
            show_progress: Whether to show a progress bar.

        Raises:
            DatasetError: There are no pairs, or one does not fit; the message names it.
        """
        rows = self.astream(pairs, concurrency=concurrency, show_progress=show_progress)
        return FinetuneDataset([row async for row in rows])

    def write(
        self, pairs: PairSource, path: str | Path, format: str | None = None, *, show_progress: bool = True
    ) -> Path:
        """Stream the rows into a file, atomically, in bounded memory.

        Args:
            pairs: As for ``build``.
            path: File to write.
            format: As for ``FinetuneDataset.save``. None: canonical Examples.
            show_progress: Whether to show a progress bar.

        Returns:
            ``path``.

        Raises:
            ConfigurationError: The format is unknown, or the file cannot be written.
            DatasetError: There are no pairs, one does not fit, or the format cannot express a row; the message
                names it.
        """
        rows = self.stream(pairs, show_progress=show_progress)
        lines = (row.to_json() for row in rows) if format is None else training_lines(rows, format)
        return save_lines(Path(path), lines)

    def stream(self, pairs: PairSource, *, show_progress: bool = False) -> Iterator[Example]:
        """Rows one by one, in the order of the pairs.

        Args:
            pairs: As for ``build``.
            show_progress: Whether to show a progress bar.

        Raises:
            DatasetError: There are no pairs, or one does not fit; the message names it.
        """
        self.counts = Counter()
        for pair in progress_bar(
            _at_least_one(pairs), desc="retrieve", unit="pair", disable=not show_progress
        ):
            nodes = [] if self._retriever is None else self._retriever.retrieve(pair.query)
            yield from self._rows(pair, nodes)
        self._log_counts()

    async def astream(
        self, pairs: PairSource, *, concurrency: int = 8, show_progress: bool = False
    ) -> AsyncIterator[Example]:
        """As ``stream``, with several retrievals in progress at a time; the order is the same.

        Args:
            pairs: As for ``build``.
            concurrency: Most retrievals in progress at a time.
            show_progress: Whether to show a progress bar.

        Raises:
            DatasetError: There are no pairs, or one does not fit; the message names it.
        """
        self.counts = Counter()
        window: deque[tuple[Pair, asyncio.Task[list[NodeWithScore]]]] = deque()
        try:
            for pair in progress_bar(
                _at_least_one(pairs), desc="retrieve", unit="pair", disable=not show_progress
            ):
                window.append((pair, asyncio.create_task(self._aretrieve(pair.query))))
                if len(window) >= concurrency:
                    first, task = window.popleft()
                    for row in self._rows(first, await task):
                        yield row
            while window:
                first, task = window.popleft()
                for row in self._rows(first, await task):
                    yield row
        finally:
            for _, task in window:
                task.cancel()
        self._log_counts()

    async def _aretrieve(self, query: str) -> list[NodeWithScore]:
        return [] if self._retriever is None else await self._retriever.aretrieve(query)

    def _kind(self, query: str) -> ContextKind:
        """The kind of context that the question is to get, by its hash and the shares."""
        value = unit_hash(self._seed, query)
        if value < self._share_without_context:
            return "without_context"
        border = self._share_without_context + self._share_without_support
        return "without_support" if value < border else "with_support"

    def _rows(self, pair: Pair, nodes: list[NodeWithScore]) -> Iterator[Example]:
        context = _choose_context(pair, nodes, self._kind(pair.query), self._distractors)
        self.counts.update(context.notes)
        if not context.nodes and context.kind != "without_context":
            self.counts[_SKIPPED] += 1
            return
        shape = self._shape.for_answer(pair.answer)
        answer = _answer_text(pair, shape, self._messages(pair, context.nodes))
        if context.kind == "without_support" and self._abstention is not None:
            answer = self._abstention
        self.counts[_MISSED] += context.kind == "support_missed"
        rows = [
            self._example(pair, answer, shape, chunks, context) for chunks in self._per_row(context.nodes)
        ]
        settled = list(settle_misses(rows, self._retrieval_misses, self._abstention))
        if context.kind == "with_support":
            self.counts[_DISTRACTOR] += len(rows) - len(settled)
        self.counts.update(f"rows {row.metadata[CONTEXT_KEY]}" for row in settled)
        self.counts += Counter()  # without those that are 0
        yield from settled

    def _per_row(self, nodes: list[NodeWithScore]) -> Iterable[list[NodeWithScore]]:
        """The chunks of each row: all in one, or one each."""
        return [[node] for node in nodes] if nodes and self.recipe.separate_context else [nodes]

    def _example(
        self, pair: Pair, answer: str, shape: AnswerShape, chunks: list[NodeWithScore], context: _Context
    ) -> Example:
        schema = shape.schema or pair.answer_schema
        kind = "distractor" if self._is_distractor(pair, chunks, context) else context.kind
        return Example(
            messages=self._messages(pair, chunks),
            answer=Message(role="assistant", content=answer),
            transport="json_schema" if schema else "text",
            answer_schema=schema,
            schema_name=shape.name or pair.schema_name,
            answer_class=shape.class_path if shape.schema else pair.answer_class,
            query=pair.query,
            sources=tuple(source_of(chunk) for chunk in chunks),
            document_id=context.document_id,
            metadata={**self._metadata, CONTEXT_KEY: kind},
        )

    def _messages(self, pair: Pair, chunks: list[NodeWithScore]) -> tuple[Message, ...]:
        return self.recipe.messages(pair.query, context_text(chunks) if chunks else None)

    def _is_distractor(self, pair: Pair, chunks: list[NodeWithScore], context: _Context) -> bool:
        """Whether a row with one chunk lacks the support that the pair names; a guessed support decides nothing."""
        named = bool(pair.node_ids or pair.document_id)
        separated = self.recipe.separate_context and context.kind == "with_support"
        return named and separated and not _support(pair, chunks)

    def _log_counts(self) -> None:
        for key, count in sorted(self.counts.items()):
            _log.log(logging.INFO if key.startswith("rows") else logging.WARNING, "%s: %d", key, count)
        missed = self.counts["rows support_missed"] + self.counts["rows distractor"]
        if missed and self._retrieval_misses == "keep":
            _log.warning(
                "%d rows contain no chunk that supports their answer, which trains hallucination: raise the "
                "retriever's top_k, or leave them out with retrieval_misses='drop'",
                missed,
            )


def _choose_context(
    pair: Pair, nodes: Sequence[NodeWithScore], kind: ContextKind, distractors: int
) -> _Context:
    """The chunks for ``pair``; the result's ``kind`` differs from the requested one where ``nodes`` allow no better."""
    support = _support(pair, nodes)
    first = next((n for n in nodes if n.node_id in support), nodes[0] if nodes else None)
    document = pair.document_id or (first.node.ref_doc_id if first else None)
    if kind == "without_context":
        return _Context([], kind, document)
    others = [n for n in nodes if n.node_id not in support]
    chosen = others[:distractors] if distractors else others
    notes = (_FEW_DISTRACTORS,) if len(chosen) < distractors else ()
    if kind == "without_support" and others:
        return _Context(chosen, kind, document, notes)
    if kind == "without_support":
        notes = (*notes, _SUPPORT_KEPT)
    kept = support | {n.node_id for n in chosen}
    reached: ContextKind = "with_support" if support else "support_missed"
    return _Context([n for n in nodes if n.node_id in kept], reached, document, notes)


def _support(pair: Pair, nodes: Sequence[NodeWithScore]) -> set[str]:
    """Ids of the retrieved chunks that support the answer."""
    if pair.node_ids or not nodes:
        return {n.node_id for n in nodes} & pair.node_ids
    document = pair.document_id or nodes[0].node.ref_doc_id
    if document is None:
        return {nodes[0].node_id}
    return {n.node_id for n in nodes if n.node.ref_doc_id == document}


def _answer_text(pair: Pair, shape: AnswerShape, messages: Sequence[Message]) -> str:
    try:
        return shape.answer_text(pair.answer, messages)
    except (ValueError, TypeError) as error:
        raise DatasetError(f"the answer to {pair.query!r}: {one_line_reason(error)}") from error


def _abstention_text(abstention: Any, shape: AnswerShape) -> str:
    try:
        return shape.answer_text(abstention)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"abstention: {one_line_reason(error)}; give a valid answer") from error


def _at_least_one(pairs: PairSource) -> Iterator[Pair]:
    empty = True
    for pair in read_pairs(pairs):
        empty = False
        yield pair
    if empty:
        raise DatasetError("no (question, answer) pairs were given; give at least one")


def _check_settings(
    without_support: float, without_context: float, distractors: int, retriever: BaseRetriever | None
) -> None:
    if not (
        0 <= without_support <= 1 and 0 <= without_context <= 1 and without_support + without_context <= 1
    ):
        raise ConfigurationError(
            f"share_without_support {without_support!r} and share_without_context {without_context!r}: "
            "expected shares from 0 to 1 whose sum is at most 1"
        )
    if distractors < 0:
        raise ConfigurationError(f"distractors: {distractors!r}, expected 0 or more")
    if retriever is None and without_context < 1:
        raise ConfigurationError("retriever: None needs share_without_context=1.0; else give a retriever")


def bm25_retriever(nodes: Sequence[BaseNode], top_k: int, extra: str, user: str) -> BaseRetriever:
    """A retriever by words in common: it needs no embedding model and no service.

    Raises MissingDependencyError where it is not installed: ``user`` needs it, and ``extra`` brings it.
    """
    try:
        from llama_index.retrievers.bm25 import BM25Retriever
    except ImportError as error:
        raise MissingDependencyError("llama-index-retrievers-bm25", extra, user) from error
    retriever: BaseRetriever = BM25Retriever.from_defaults(
        nodes=list(nodes), similarity_top_k=min(top_k, len(nodes))
    )
    return retriever
