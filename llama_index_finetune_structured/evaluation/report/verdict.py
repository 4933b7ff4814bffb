"""What the scorecard says in a sentence or two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..score.intervals import Difference
from .table import percent

if TYPE_CHECKING:
    from ..scorecard import Scorecard

__all__ = ["TEACHER", "main_system", "signed", "verdict_of"]

TEACHER = "teacher"
_FEW_DOCUMENTS = 5


def main_system(card: Scorecard) -> str:
    """The system the page is about: the best one that is neither the first (the baseline) nor the teacher."""
    names = list(card.systems)
    students = [name for name in names[1:] if name != TEACHER] or names[:1]
    return max(students, key=lambda name: (card.systems[name].field_score, card.systems[name].exact_match))


def verdict_of(card: Scorecard) -> str:
    """The best student against the first system and the teacher, by field score, with 95% intervals."""
    main, base = main_system(card), next(iter(card.systems))
    score = card.systems[main]
    parts = []
    if main != base:
        parts.append(_against(card.difference(main, base), score.n))
    if TEACHER in card.systems and TEACHER not in (main, base):
        parts.append(_against(card.difference(main, TEACHER), score.n))
    claim = f"{main} {'; it '.join(parts)}. " if parts else ""
    subject = "It" if claim else _capital(main)
    valid, right = percent(score.schema_valid), percent(score.field_score)
    return (
        f"{claim}{subject} gives a valid answer in {valid} of {score.n} cases "
        f"and gets {right} of the fields right.{_few_documents(card)}"
    )


def _few_documents(card: Scorecard) -> str:
    """Rows of one document stand or fall together: a handful of documents tells little, however many rows."""
    documents = {row.document_id for row in card.rows}
    if None in documents or len(documents) >= min(_FEW_DOCUMENTS, len(card.rows)):
        return ""
    asked = "one document" if len(documents) == 1 else f"{len(documents)} documents"
    return f" All of it is about {asked}: the intervals say little."


def _against(found: Difference, n: int) -> str:
    points, low, high = (round(100 * value) for value in (found.difference, found.low, found.high))
    if not found.is_clear:
        return (
            f"cannot be told from {found.against} on these {n} examples "
            f"({signed(points)} points, 95% interval {signed(low)} to {signed(high)})"
        )
    if found.difference > 0:
        return f"beats {found.against} by {points} points (95% interval {low} to {high})"
    return f"is {-points} points behind {found.against} (95% interval {-high} to {-low})"


def signed(points: float) -> str:
    """Whole points with their sign; a true minus sign, and none for nothing."""
    whole = round(points)
    return f"+{whole}" if whole > 0 else f"−{-whole}" if whole < 0 else "0"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
