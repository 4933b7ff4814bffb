"""Gap between the score on training rows and on held-out rows: a sign of overfitting."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from ..results import ScoreTable, resamples_of
from ..score.intervals import ends_of_gap

__all__ = ["Gap", "gaps"]

FLAGGED_FROM = 0.05
"""Chosen: a smaller gap is of no practical weight, however clear."""


class Gap(BaseModel):
    """Field score of one system on training rows minus that on held-out rows.

    Attributes:
        system: Name of the system.
        train: Field score on the training rows, from 0 to 1.
        held_out: Field score on the other rows.
        gap: ``train`` minus ``held_out``.
        low: Lower end of the gap's 95% interval.
        high: Upper end of the interval.
    """

    model_config = ConfigDict(frozen=True)

    system: str
    train: float
    held_out: float
    gap: float
    low: float
    high: float

    @property
    def is_flagged(self) -> bool:
        """Whether the interval is above zero and the gap at least ``FLAGGED_FROM``: training rows are memorised."""
        return self.low > 0 and self.gap >= FLAGGED_FROM


def gaps(table: ScoreTable) -> dict[str, Gap]:
    """System -> gap; empty unless the table has rows of the split "train" and rows of another split."""
    train = [row for row in table.rows if row.split == "train"]
    held_out = [row for row in table.rows if row.split not in (None, "train")]
    if not train or not held_out:
        return {}
    kinds = table.field_kinds
    # two seeds, as the two sets of rows are independent
    seen, unseen = resamples_of(train, kinds, seed=1), resamples_of(held_out, kinds, seed=2)
    out = {}
    for name in table.systems:
        rates = [part.interval(name, "field_score").rate for part in (seen, unseen)]
        low, high = ends_of_gap(seen, unseen, name, "field_score")
        out[name] = Gap(
            system=name, train=rates[0], held_out=rates[1], gap=rates[0] - rates[1], low=low, high=high
        )
    return out
