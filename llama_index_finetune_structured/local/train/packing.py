"""Prefix-tree packing: rows that begin alike become one flat row of tokens in which the shared part stands once.

A batch of (prompt, answer) rows is laid out as the depth-first walk of its token trie. Every token keeps the
position it has in its own row, and attends to its ancestors in the trie and itself, so hidden states, loss and
gradients are mathematically those of the plain batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

__all__ = ["PackedBatch", "Row", "Segment", "common_length", "pack"]

Span = tuple[int, int]


@dataclass(frozen=True)
class Row:
    """Token ids of one training row; the loss is on every token of ``answer``, the stop token included."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        return self.prompt + self.answer[:-1]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class Segment:
    """A run ``start:stop`` of the flat row that sees itself causally and all of ``ancestors``."""

    start: int
    stop: int
    ancestors: tuple[Span, ...]


@dataclass(frozen=True)
class PackedBatch:
    """One flat row: token ids and positions, where answers are predicted and their labels, the trie's segments."""

    ids: list[int]
    positions: list[int]
    answer_at: list[int]
    labels: list[int]
    segments: list[Segment]
    plain_tokens: int


def pack(rows: Sequence[Row], *, min_shared: int = 16) -> PackedBatch:
    """Lay rows out as one flat row. Prefixes shorter than ``min_shared`` tokens are repeated, not shared."""
    order = sorted(range(len(rows)), key=lambda i: rows[i].inputs)
    layout = _Layout([row.inputs for row in rows], min_shared)
    layout.grow(order, depth=0, path=())
    answer_at: list[int] = []
    labels: list[int] = []
    for row, path in zip(rows, layout.paths, strict=True):
        flat = [position for span in path for position in range(*span)]
        answer_at += flat[len(row.prompt) - 1 :]
        labels += row.answer
    return PackedBatch(
        layout.ids, layout.positions, answer_at, labels, layout.segments, sum(len(row.inputs) for row in rows)
    )


class _Layout:
    def __init__(self, sequences: list[tuple[int, ...]], min_shared: int) -> None:
        self.sequences, self.min_shared = sequences, min_shared
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.segments: list[Segment] = []
        self.paths: list[tuple[Span, ...]] = [()] * len(sequences)

    def grow(self, group: list[int], depth: int, path: tuple[Span, ...]) -> None:
        """Lay out the sorted sequences of ``group``, which agree on their first ``depth`` tokens."""
        shared = self._common_length(group)
        if len(group) > 1 and shared < len(self.sequences[group[-1]]) and shared - depth < self.min_shared:
            self._branch(group, depth, path, apart=shared - depth > 0)
            return
        path = self._append(self.sequences[group[0]][depth:shared], depth, path)
        ended = [i for i in group if len(self.sequences[i]) == shared]
        for i in ended:
            self.paths[i] = path
        if len(ended) < len(group):
            self._branch(group[len(ended) :], shared, path, apart=False)

    def _branch(self, group: list[int], depth: int, path: tuple[Span, ...], *, apart: bool) -> None:
        children: Iterable[list[int]] = (
            ([i] for i in group)
            if apart
            else (list(g) for _, g in groupby(group, key=lambda i: self.sequences[i][depth]))
        )
        for child in children:
            self.grow(child, depth, path)

    def _common_length(self, group: list[int]) -> int:
        return common_length(self.sequences[group[0]], self.sequences[group[-1]])

    def _append(self, tokens: tuple[int, ...], depth: int, path: tuple[Span, ...]) -> tuple[Span, ...]:
        if not tokens:
            return path
        start = len(self.ids)
        span = (start, start + len(tokens))
        self.ids += tokens
        self.positions += range(depth, depth + len(tokens))
        self.segments.append(Segment(*span, _merged(path)))
        return (*path, span)


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(first), len(second)))


def _merged(path: tuple[Span, ...]) -> tuple[Span, ...]:
    """Neighbouring spans joined, so that attention concatenates as few pieces as it can."""
    merged: list[Span] = []
    for span in path:
        if merged and merged[-1][1] == span[0]:
            merged[-1] = (merged[-1][0], span[1])
        else:
            merged.append(span)
    return tuple(merged)
