"""After how many queries a tuned model has paid for itself, from captured token use and given prices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import ConfigurationError

if TYPE_CHECKING:
    from ..scorecard import Scorecard

__all__ = ["BreakEven", "Prices", "break_even"]


@dataclass(frozen=True)
class Prices:
    """What the teacher and the student cost, all in one currency.

    Teacher: price of a million tokens in and out. Student: ``machine_per_hour`` for as long as it answers
    (``seconds_per_answer`` as measured) and for ``training_hours``; a hosted student that is paid by the
    token has ``student_per_query`` and ``training_cost`` instead. ``training_examples`` teacher answers
    were bought to train it.
    """

    input_per_million: float
    output_per_million: float
    machine_per_hour: float = 0.0
    training_hours: float = 0.0
    training_cost: float = 0.0
    student_per_query: float = 0.0
    training_examples: int = 0
    currency: str = "USD"


@dataclass(frozen=True)
class BreakEven:
    """Cost of one query and what was paid up front; ``queries`` None: the student never pays off."""

    teacher_per_query: float
    student_per_query: float
    upfront: float
    queries: int | None
    currency: str
    fields_right: float

    def sentence(self, student: str) -> str:
        """The same for a person to read."""
        spent = (
            f"{self.teacher_per_query:.2g} {self.currency} a query for the teacher, "
            f"{self.student_per_query:.2g} for {student}, {self.upfront:.3g} spent up front"
        )
        if self.queries is None:
            return f"{spent}: {student} is not cheaper per query, so it does not pay for itself."
        return (
            f"{spent}: {student} has paid for itself after {self.queries:,} queries, where its answers will do "
            f"({self.fields_right:.0%} of the fields right)."
        )


def break_even(card: Scorecard, student: str, prices: Prices) -> BreakEven:
    """Mean token use of the captured gold answers x prices against the student's measured time."""
    used = [row.usage for row in card.rows if row.usage is not None]
    counts = [(u.prompt_tokens, u.completion_tokens) for u in used]
    known = [(tokens_in, out) for tokens_in, out in counts if tokens_in is not None and out is not None]
    if not known:
        raise ConfigurationError(
            "no example has its teacher's tokens (Example.usage with prompt_tokens and completion_tokens), "
            "from which the cost of a query is worked out: capture from a provider that reports it."
        )
    if student not in card.systems:
        raise ConfigurationError(f"no system {student!r}; there are: {', '.join(card.systems)}")
    spent = sum(i * prices.input_per_million + o * prices.output_per_million for i, o in known) / 1e6
    teacher = spent / len(known)
    seconds = card.systems[student].seconds_per_answer
    mine = prices.student_per_query + prices.machine_per_hour * seconds / 3600
    upfront = (
        prices.training_cost
        + prices.machine_per_hour * prices.training_hours
        + prices.training_examples * teacher
    )
    saved = teacher - mine
    queries = math.ceil(upfront / saved) if saved > 0 else None
    right = card.systems[student].field_score
    return BreakEven(teacher, mine, upfront, queries, prices.currency, right)
