"""Retrieval-augmented rows: each question with the chunks that the user's own retriever finds for it.

Two modes of the reference: one row with all chunks joined, or a row a chunk. Beyond it, after RA-DIT
(arXiv:2310.01352) and RAFT (arXiv:2403.10131): distractors mined from the same retriever, rows without the
supporting chunk, rows without any context.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import NodeWithScore
from pydantic import BaseModel
from tqdm import tqdm

from ...errors import ConfigurationError, DatasetError
from ...example import Example, Message
from ...formats.registry import training_lines
from ...formats.wire import source_of
from ...jsonl import one_line_reason, write_lines
from ..finetune_dataset import FinetuneDataset
from ..labels import AnswerShape, own_shape
from ..pairs import Pair, PairSource, read_pairs
from ..splits import place
from .context import Context, Kind, choose_context
from .recipe import DEFAULT_QA_TEMPLATE, ServingRecipe, context_text, template_text

__all__ = ["RetrievalAugmentedDatasetBuilder"]

_log = logging.getLogger(__name__)


class RetrievalAugmentedDatasetBuilder:
    """(question, answer) pairs -> training rows whose prompts hold retrieved chunks.

    ``separate_context``: k rows of question + chunk_i -> answer, instead of one row with the chunks joined.
    ``distractors``: keep the supporting chunks and this many others of the retriever's list (0: keep the
    list as it is). ``share_without_support``: share of questions whose supporting chunks are taken out;
    their answer becomes ``abstention`` where given, and stays (answer from memory) where not.
    ``share_without_context``: share of questions asked without any chunk; 1.0 bakes knowledge in and needs
    no retriever. The supporting chunks are those a pair names (``node_id``, ``document_id``, a captured
    example's sources); of a pair that names none, all chunks of the best hit's document.

    Which question gets which treatment is decided by a hash of ``seed`` and question: the same pairs give
    the same bytes in any order. ``recipe`` says how to serve what was trained; ``counts`` what the newest
    build made, skipped and missed. Raises DatasetError naming the pair that does not fit.
    """

    def __init__(
        self,
        retriever: BaseRetriever | None,
        *,
        separate_context: bool = False,
        qa_template: str | PromptTemplate = DEFAULT_QA_TEMPLATE,
        system_prompt: str | None = None,
        output_cls: type[BaseModel] | None = None,
        distractors: int = 0,
        share_without_support: float = 0.0,
        abstention: Any = None,
        share_without_context: float = 0.0,
        seed: int = 0,
    ) -> None:
        _check_shares(share_without_support, share_without_context, distractors, retriever)
        self._retriever = retriever
        self._shape = AnswerShape(output_cls, None)
        self._abstention = None if abstention is None else self._shape(abstention)
        self._distractors = distractors
        self._shares = (share_without_context, share_without_support)
        self._seed = seed
        self.recipe = ServingRecipe(
            qa_template=None if share_without_context == 1 else template_text(qa_template),
            system_prompt=system_prompt,
            separate_context=separate_context,
        )
        self._metadata = self.recipe.metadata()
        self.counts: Counter[str] = Counter()

    def build(self, pairs: PairSource, *, show_progress: bool = True) -> FinetuneDataset:
        """All rows in memory; see :meth:`write` for many."""
        return FinetuneDataset(self.stream(pairs, show_progress=show_progress))

    async def abuild(
        self, pairs: PairSource, *, concurrency: int = 8, show_progress: bool = True
    ) -> FinetuneDataset:
        """As :meth:`build`, with ``concurrency`` retrievals under way at a time."""
        rows = self.astream(pairs, concurrency=concurrency, show_progress=show_progress)
        return FinetuneDataset([row async for row in rows])

    def write(
        self, pairs: PairSource, path: str | Path, format: str | None = None, *, show_progress: bool = True
    ) -> Path:
        """Stream the rows into a file, whole or not at all, in memory that does not grow with them."""
        rows = self.stream(pairs, show_progress=show_progress)
        lines = (row.to_json() for row in rows) if format is None else training_lines(rows, format)
        return write_lines(Path(path), lines)

    def stream(self, pairs: PairSource, *, show_progress: bool = False) -> Iterator[Example]:
        """Rows one by one, in the order of the pairs."""
        self.counts = Counter()
        for pair in tqdm(_checked(pairs), desc="retrieve", unit="pair", disable=not show_progress):
            nodes = [] if self._retriever is None else self._retriever.retrieve(pair.query)
            yield from self._rows(pair, nodes)
        self._tell()

    async def astream(
        self, pairs: PairSource, *, concurrency: int = 8, show_progress: bool = False
    ) -> AsyncIterator[Example]:
        """As :meth:`stream`, with ``concurrency`` retrievals under way at a time; the order is the same."""
        self.counts = Counter()
        window: deque[tuple[Pair, asyncio.Task[list[NodeWithScore]]]] = deque()
        try:
            for pair in tqdm(_checked(pairs), desc="retrieve", unit="pair", disable=not show_progress):
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
        self._tell()

    async def _aretrieve(self, query: str) -> list[NodeWithScore]:
        return [] if self._retriever is None else await self._retriever.aretrieve(query)

    def _kind(self, query: str) -> Kind:
        drawn = place(self._seed, query)
        bare, unsupported = self._shares
        if drawn < bare:
            return "without_context"
        return "without_support" if drawn < bare + unsupported else "with_support"

    def _rows(self, pair: Pair, nodes: list[NodeWithScore]) -> Iterator[Example]:
        context = choose_context(pair, nodes, self._kind(pair.query), self._distractors)
        self.counts.update(context.notes)
        if not context.nodes and context.kind != "without_context":
            self.counts["questions skipped: nothing retrieved"] += 1
            return
        shape = own_shape(self._shape, pair.answer)
        answer = _answer(pair, shape)
        if context.kind == "without_support" and self._abstention is not None:
            answer = self._abstention
        for chunks in self._portions(context.nodes):
            self.counts[f"rows {context.kind}"] += 1
            yield self._example(pair, answer, shape, chunks, context)

    def _portions(self, nodes: list[NodeWithScore]) -> Iterable[list[NodeWithScore]]:
        return [[node] for node in nodes] if nodes and self.recipe.separate_context else [nodes]

    def _example(
        self, pair: Pair, answer: str, shape: AnswerShape, chunks: list[NodeWithScore], context: Context
    ) -> Example:
        schema = shape.schema or pair.answer_schema
        return Example(
            messages=self.recipe.messages(pair.query, context_text(chunks) if chunks else None),
            answer=Message(role="assistant", content=answer),
            transport="json_schema" if schema else "text",
            answer_schema=schema,
            schema_name=shape.name or pair.schema_name,
            query=pair.query,
            sources=tuple(source_of(chunk) for chunk in chunks),
            document_id=context.document_id,
            metadata={**self._metadata, "context": context.kind},
        )

    def _tell(self) -> None:
        for what, count in sorted(self.counts.items()):
            _log.log(logging.INFO if what.startswith("rows") else logging.WARNING, "%s: %d", what, count)
        if missed := self.counts["rows support_missed"]:
            _log.warning(
                "%d rows hold no chunk that supports their answer, which teaches to invent: raise the "
                "retriever's top_k, or leave out those whose metadata['context'] is 'support_missed'",
                missed,
            )


def _answer(pair: Pair, shape: AnswerShape) -> str:
    try:
        return shape(pair.answer)
    except (ValueError, TypeError) as error:
        raise DatasetError(f"the answer to {pair.query!r}: {one_line_reason(error)}") from error


def _checked(pairs: PairSource) -> Iterator[Pair]:
    empty = True
    for pair in read_pairs(pairs):
        empty = False
        yield pair
    if empty:
        raise DatasetError("no (question, answer) pairs were given; nothing to build")


def _check_shares(unsupported: float, bare: float, distractors: int, retriever: BaseRetriever | None) -> None:
    if not (0 <= unsupported <= 1 and 0 <= bare <= 1 and unsupported + bare <= 1):
        raise ConfigurationError(
            f"share_without_support {unsupported!r} and share_without_context {bare!r}: expected shares "
            "from 0 to 1 whose sum is at most 1"
        )
    if distractors < 0:
        raise ConfigurationError(f"distractors: {distractors!r}, expected 0 or more")
    if retriever is None and bare < 1:
        raise ConfigurationError("retriever: None goes with share_without_context=1.0 only; give a retriever")
