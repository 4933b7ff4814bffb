"""Whether a new version may serve: a test that it is not worse than the one that does, on the same rows."""

from __future__ import annotations

from dataclasses import dataclass

from ..evaluation.scorecard import Scorecard

__all__ = ["CANDIDATE", "CURRENT", "Decision", "least_margin", "points"]

CURRENT, CANDIDATE = "current", "candidate"


@dataclass(frozen=True)
class Decision:
    """Whether the candidate is promoted, and why."""

    promotes: bool
    reason: str

    @classmethod
    def of(cls, card: Scorecard, margin: float) -> Decision:
        """A non-inferiority test: the whole 95% interval of the paired difference must be above ``-margin``."""
        if card.unanswered:
            return cls(False, f"{', '.join(card.unanswered)} gave no answer; call again to score it")
        found = card.difference(CANDIDATE, CURRENT)
        figures = (
            f"field score {_signed(found.difference)}, 95% interval {_signed(found.low)} to {_signed(found.high)}, on "
            f"{len(card.rows)} held-out rows"
        )
        if found.low > 0:
            return cls(True, f"it is better: {figures}")
        if found.low >= -margin:
            return cls(True, f"it is not worse by more than {points(margin)}: {figures}")
        if found.high < 0:
            return cls(False, f"it is worse: {figures}")
        least = least_margin(card)
        few = (
            f". So few rows cannot tell: equal answers, too, could be {points(least)} worse. Hold out more rows, or "
            "allow more with margin="
        )
        return cls(
            False,
            f"it could be worse by more than {points(margin)}: {figures}{few if least > margin else ''}",
        )


def least_margin(card: Scorecard) -> float:
    """The margin that a student needs which gives the same answers as the card's last one, on the card's rows."""
    last = list(card.systems)[-1]
    return -card.difference(last, last).low


def points(rate: float) -> str:
    """A rate in points of a hundred."""
    return f"{100 * rate:.1f} points"


def _signed(rate: float) -> str:
    return f"{100 * rate:+.1f}".replace("-", "−")
