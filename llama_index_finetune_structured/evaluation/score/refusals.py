"""How well a system says that a text is of another kind: precision and recall of answers without any value."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict

from ...dataset.labels import says_none
from .metrics import ScoredAnswer

__all__ = ["RefusalScore", "refusal_score"]


class RefusalScore(BaseModel):
    """Counts of answers that are null, or without any value.

    Attributes:
        n: Number of answers.
        gold: Rows whose own answer is one.
        said: Valid answers that are one.
        right: Valid answers that are one where gold is.
    """

    model_config = ConfigDict(frozen=True)

    n: int
    gold: int
    said: int
    right: int

    @property
    def precision(self) -> float | None:
        """Right share of those that were said; None where none was."""
        return self.right / self.said if self.said else None

    @property
    def recall(self) -> float:
        """Share of those of gold that were said."""
        return self.right / self.gold


def refusal_score(answers: Iterable[tuple[Any, ScoredAnswer]]) -> RefusalScore | None:
    """The figures of pairs of gold and answer; None where no gold answer says none."""
    found = [(says_none(gold), answer.valid and says_none(answer.value)) for gold, answer in answers]
    due = sum(is_due for is_due, _ in found)
    if not due:
        return None
    return RefusalScore(
        n=len(found), gold=due, said=sum(said for _, said in found), right=sum(map(all, found))
    )
