"""Which rows make a batch: those that begin alike stand together, every row once an epoch, in a seeded order."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import pairwise

from .packing import Row, common_length

__all__ = ["batches"]

_CLOSE = 0.25
Group = list[int]


def batches(rows: Sequence[Row], batch_size: int, *, seed: str) -> list[list[Row]]:
    """Rows in batches of ``batch_size`` (the last may be smaller), the same for the same seed.

    Rows are kin when they share, beyond what all their neighbours share, a quarter of their tokens: the questions
    about one chunk, not the rows under one system prompt. Without kin this is a plain shuffle.
    """
    draw = random.Random(seed)
    sequences = [row.inputs for row in rows]
    order = sorted(range(len(rows)), key=lambda i: sequences[i])
    full, rest = _batched(_Kin(sequences, order), 0, len(order), batch_size, draw)
    draw.shuffle(full)
    return [[rows[i] for i in batch] for batch in ([*full, rest] if rest else full)]


class _Kin:
    """Sorted sequences, and how many tokens each shares with the one before it."""

    def __init__(self, sequences: Sequence[tuple[int, ...]], order: Group) -> None:
        self.order = order
        self.lengths = [len(sequences[i]) for i in order]
        self.shared = [0, *(common_length(sequences[a], sequences[b]) for a, b in pairwise(order))]

    def runs(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """``start:stop`` cut where neighbours share little more than all of it shares."""
        common = min(self.shared[start + 1 : stop])
        begin = start
        for at in range(start + 1, stop):
            if self.shared[at] - common <= _CLOSE * self.lengths[at]:
                yield begin, at
                begin = at
        yield begin, stop


def _batched(kin: _Kin, start: int, stop: int, size: int, draw: random.Random) -> tuple[list[Group], Group]:
    """Full batches of the sorted rows ``start:stop``, and the fewer than ``size`` rows that are left."""
    if stop - start <= 1:
        return [], kin.order[start:stop]
    full: list[Group] = []
    left: list[Group] = []
    for a, b in kin.runs(start, stop):
        done, rest = ([], kin.order[a:b]) if b - a == 1 else _batched(kin, a, b, size, draw)
        full += done
        left.append(rest)
    draw.shuffle(left)
    flat = [i for group in left for i in group]
    cut = len(flat) - len(flat) % size
    return [*full, *(flat[n : n + size] for n in range(0, cut, size))], flat[cut:]
