"""Batches of an epoch: every row once, rows with a common prefix in one batch, in a seeded order."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

from ..model.prompts import TrainingRow
from .packing import common_length

__all__ = ["batches"]

# Share of its tokens that a row must have in common with the row before it, beyond what the whole range has in
# common, to be of one group. Chosen: a shared chunk passes, the opening words of two questions do not.
_GROUP_SHARE = 0.25
_Indices = list[int]
_Row = TypeVar("_Row", bound=TrainingRow)


def batches(rows: Sequence[_Row], batch_size: int, *, seed: str) -> list[list[_Row]]:
    """Split rows into batches of ``batch_size`` (the last may be smaller), the same for the same seed.

    Rows are grouped when they share, beyond what all their neighbours share, a quarter of their tokens: the
    questions about one chunk, not all rows under one system prompt. Without groups this is a plain shuffle.
    """
    draw = random.Random(seed)
    sequences = [row.inputs for row in rows]
    order = sorted(range(len(rows)), key=lambda i: sequences[i])
    full, rest = _batched(_SortedRows(sequences, order), 0, len(order), batch_size, draw)
    draw.shuffle(full)
    return [[rows[i] for i in batch] for batch in ([*full, rest] if rest else full)]


class _SortedRows:
    """Sorted sequences, their lengths, and how many tokens each shares with the one before it."""

    def __init__(self, sequences: Sequence[tuple[int, ...]], order: _Indices) -> None:
        self.order = order
        self.lengths = [len(sequences[i]) for i in order]
        self.shared = [0, *(common_length(sequences[a], sequences[b]) for a, b in pairwise(order))]

    def groups(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Cut ``start:stop`` where neighbours share little more than the whole range shares."""
        common = min(self.shared[start + 1 : stop])
        begin = start
        for at in range(start + 1, stop):
            if self.shared[at] - common <= _GROUP_SHARE * self.lengths[at]:
                yield begin, at
                begin = at
        yield begin, stop


def _batched(
    rows: _SortedRows, start: int, stop: int, size: int, draw: random.Random
) -> tuple[list[_Indices], _Indices]:
    """Full batches of the sorted rows ``start:stop``, and the fewer than ``size`` rows that are left.

    Recursive, because prefixes nest: system prompt, then chunk, then question. Each group first fills batches of
    its own, so that the longest common prefixes are packed together. Only its left-over rows move up a level,
    where they share less; there the left-overs of all groups are shuffled as whole groups, joined and cut into
    batches. A group of one row cannot be split further. Every range splits into smaller ones, because somewhere
    two neighbours share no more than ``common``.
    """
    if stop - start <= 1:
        return [], rows.order[start:stop]
    full: list[_Indices] = []
    left: list[_Indices] = []
    for a, b in rows.groups(start, stop):
        done, rest = ([], rows.order[a:b]) if b - a == 1 else _batched(rows, a, b, size, draw)
        full += done
        left.append(rest)
    draw.shuffle(left)
    flat = [i for group in left for i in group]
    cut = len(flat) - len(flat) % size
    return [*full, *(flat[n : n + size] for n in range(0, cut, size))], flat[cut:]
