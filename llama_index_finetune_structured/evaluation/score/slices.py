"""The figures again over parts of the rows: by document, split or length of the gold answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from ...example import canonical_json
from .metrics import Metrics, metrics

if TYPE_CHECKING:
    from ..scorecard import Row

__all__ = ["SliceBy", "sliced"]

SliceBy = Literal["document", "split", "answer_length"]


def sliced(
    rows: Sequence[Row], kinds: dict[str, str], by: SliceBy | Callable[[Row], str]
) -> dict[str, dict[str, Metrics]]:
    """Slice -> system -> metrics, slices in order of their first row (lengths: short to long)."""
    if by == "answer_length":
        parts = _by_length(rows)
    else:
        label = by if callable(by) else _LABELS[by]
        parts = {}
        for row in rows:
            parts.setdefault(label(row), []).append(row)
    return {
        name: {system: metrics([row.answers[system] for row in part], kinds) for system in part[0].answers}
        for name, part in parts.items()
    }


_LABELS: dict[str, Callable[[Row], str]] = {
    "document": lambda row: row.document_id or "(no document)",
    "split": lambda row: row.split or "(no split)",
}


def _by_length(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Thirds by the gold answer's length in characters; rows of equal length stay together."""
    lengths = sorted(_length(row) for row in rows)
    limits = (
        [lengths[(len(lengths) * third) // 3 - 1] for third in (1, 2, 3)] if len(rows) >= 3 else lengths[-1:]
    )
    parts: dict[str, list[Row]] = {}
    for row in sorted(rows, key=_length):
        limit = next(limit for limit in limits if _length(row) <= limit)
        parts.setdefault(f"up to {limit} characters", []).append(row)
    return parts


def _length(row: Row) -> int:
    return len(canonical_json(row.gold))
