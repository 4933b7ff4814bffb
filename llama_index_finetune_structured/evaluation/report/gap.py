"""Training rows against held-out rows: how much of the score is memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from ..score.intervals import Resamples, ends_of_gap

if TYPE_CHECKING:
    from ..scorecard import Scorecard

__all__ = ["Gap", "gaps"]

FLAGGED_FROM = 0.05


class Gap(BaseModel):
    """Field score on training rows less that on held-out rows, and its 95% interval."""

    model_config = ConfigDict(frozen=True)

    system: str
    train: float
    held_out: float
    gap: float
    low: float
    high: float

    @property
    def is_flagged(self) -> bool:
        """Clearly above nothing and worth at least 5 points: learned by heart."""
        return self.low > 0 and self.gap >= FLAGGED_FROM


def gaps(card: Scorecard) -> dict[str, Gap]:
    """System -> gap, where the rows have both a split "train" and another; else empty."""
    train = [row for row in card.rows if row.split == "train"]
    held_out = [row for row in card.rows if row.split not in (None, "train")]
    if not train or not held_out:
        return {}
    kinds = card.field_kinds
    seen, unseen = Resamples(train, kinds, seed=1), Resamples(held_out, kinds, seed=2)
    out = {}
    for name in card.systems:
        rates = [part.interval(name, "field_score").rate for part in (seen, unseen)]
        low, high = ends_of_gap(seen, unseen, name, "field_score")
        out[name] = Gap(
            system=name, train=rates[0], held_out=rates[1], gap=rates[0] - rates[1], low=low, high=high
        )
    return out
