"""Figures over slices of the rows: by document, split or length of the gold answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from ...example import canonical_json
from ..results import ScoredRow, ScoreTable
from ..score.metrics import Metrics, metrics

__all__ = ["SliceBy", "slices"]

SliceBy = Literal["document", "split", "answer_length"]


def slices(table: ScoreTable, by: SliceBy | Callable[[ScoredRow], str]) -> dict[str, dict[str, Metrics]]:
    """Slice -> system -> metrics, slices in the order of their first row (lengths: short to long)."""
    if by == "answer_length":
        parts = _by_length(table.rows)
    else:
        label = by if callable(by) else _LABELS[by]
        parts = {}
        for row in table.rows:
            parts.setdefault(label(row), []).append(row)
    kinds = table.field_kinds
    return {
        name: {system: metrics([row.answers[system] for row in part], kinds) for system in part[0].answers}
        for name, part in parts.items()
    }


_LABELS: dict[str, Callable[[ScoredRow], str]] = {
    "document": lambda row: row.document_id or "(no document)",
    "split": lambda row: row.split or "(no split)",
}


def _by_length(rows: Sequence[ScoredRow]) -> dict[str, list[ScoredRow]]:
    """Thirds by the gold answer's length in characters; rows of equal length stay together."""
    lengths = sorted(_length(row) for row in rows)
    thirds = (1, 2, 3) if len(rows) >= 3 else (3,)
    limits = [lengths[len(lengths) * third // 3 - 1] for third in thirds]  # the longest of each third
    parts: dict[str, list[ScoredRow]] = {}
    for row in sorted(rows, key=_length):
        limit = next(limit for limit in limits if _length(row) <= limit)
        parts.setdefault(f"up to {limit} characters", []).append(row)
    return parts


def _length(row: ScoredRow) -> int:
    return len(canonical_json(row.gold))
