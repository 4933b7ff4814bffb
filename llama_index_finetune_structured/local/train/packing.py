"""Prefix-tree packing: rows with a common prefix become one flat row of tokens that contains the prefix once.

A batch of (prompt, answer) rows is laid out as the depth-first walk of its token trie. Every token keeps the
position it has in its own row, and attends to its ancestors in the trie and itself, so hidden states, loss and
gradients are mathematically those of the plain batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from ..model.prompts import TokenRow

__all__ = ["PackedBatch", "Segment", "common_length", "pack", "pieces"]

TokenSpan = tuple[int, int]
"""Start and stop of a run of tokens in the flat row."""


@dataclass(frozen=True)
class Segment:
    """A run ``start:stop`` of the flat row: attends causally to itself and fully to all of ``ancestors``."""

    start: int
    stop: int
    ancestors: tuple[TokenSpan, ...]


@dataclass(frozen=True)
class PackedBatch:
    """A batch as one flat row.

    ``ids`` and ``positions`` [flat tokens]: token ids and their positions in their own rows. ``answer_at`` and
    ``labels`` [answer tokens]: where in the flat row an answer token is predicted, and that token's id.
    ``segments``: the edges of the trie. ``plain_tokens``: input tokens of the batch without packing.
    """

    ids: list[int]
    positions: list[int]
    answer_at: list[int]
    labels: list[int]
    segments: list[Segment]
    plain_tokens: int


def pack(rows: Sequence[TokenRow], *, min_shared: int = 16) -> PackedBatch:
    """Lay rows out as one flat row.

    Common prefixes shorter than ``min_shared`` tokens are repeated, not shared, for every segment costs an
    attention call of its own.
    """
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


def pieces(rows: Sequence[TokenRow], most_tokens: int) -> Iterator[tuple[list[TokenRow], int]]:
    """Split rows into parts of at most so many tokens, a common prefix counted once; each with its tokens.

    Rows with a common prefix stay together where they fit. A row of more tokens is a part of its own.
    """
    piece: list[TokenRow] = []
    tokens = 0
    for row in sorted(rows, key=lambda row: row.inputs):
        shared = common_length(piece[-1].inputs, row.inputs) if piece else 0
        if piece and tokens + len(row) - shared > most_tokens:
            yield piece, tokens
            piece, tokens, shared = [], 0, 0
        piece.append(row)
        tokens += len(row) - shared
    yield piece, tokens


class _Layout:
    """The flat row while it is built; ``paths``: for each sequence, the spans it is made of, in order."""

    def __init__(self, sequences: list[tuple[int, ...]], min_shared: int) -> None:
        self.sequences, self.min_shared = sequences, min_shared
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.segments: list[Segment] = []
        self.paths: list[tuple[TokenSpan, ...]] = [()] * len(sequences)

    def grow(self, group: list[int], depth: int, path: tuple[TokenSpan, ...]) -> None:
        """Lay out the sorted sequences of ``group``, which agree on their first ``depth`` tokens, at ``path``.

        The group is sorted, so its first and last sequence share what all of it shares. Three cases:

        - The group shares fewer than ``min_shared`` tokens more: no segment for them. Without any token in
          common (only at the root), the group divides by its next token. With a few, each sequence is laid out
          alone, for dividing by the next token would give the same group again; longer prefixes that a part of
          the group shares beyond them are then repeated.
        - A group of one, or one in which all sequences are equal: the rest is one segment.
        - Otherwise the common tokens become one segment. The sequences that end there (prompts that are a
          prefix of others, duplicates) sort first and are done; the rest divides by its next token.
        """
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

    def _branch(self, group: list[int], depth: int, path: tuple[TokenSpan, ...], *, apart: bool) -> None:
        """Lay out the group's children: each sequence alone (``apart``), or divided by the token at ``depth``."""
        children: Iterable[list[int]] = (
            ([i] for i in group)
            if apart
            else (list(g) for _, g in groupby(group, key=lambda i: self.sequences[i][depth]))
        )
        for child in children:
            self.grow(child, depth, path)

    def _common_length(self, group: list[int]) -> int:
        return common_length(self.sequences[group[0]], self.sequences[group[-1]])

    def _append(
        self, tokens: tuple[int, ...], depth: int, path: tuple[TokenSpan, ...]
    ) -> tuple[TokenSpan, ...]:
        """Add tokens to the flat row as a segment below ``path``; returns the path that includes it."""
        if not tokens:
            return path
        start = len(self.ids)
        span = (start, start + len(tokens))
        self.ids += tokens
        self.positions += range(depth, depth + len(tokens))
        self.segments.append(Segment(*span, _merged(path)))
        return (*path, span)


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest common prefix of two sequences."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(first), len(second)))


def _merged(path: tuple[TokenSpan, ...]) -> tuple[TokenSpan, ...]:
    """The path with adjacent spans joined, so that attention concatenates as few slices as possible."""
    merged: list[TokenSpan] = []
    for span in path:
        if merged and merged[-1][1] == span[0]:
            merged[-1] = (merged[-1][0], span[1])
        else:
            merged.append(span)
    return tuple(merged)
