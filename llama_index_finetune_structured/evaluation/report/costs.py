"""Break-even: the number of queries after which a tuned model has paid for itself.

From the captured token counts of the teacher, the measured time of the student, and prices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...errors import ConfigurationError
from ...llms.prices import Prices
from ...printable import one_line
from ..results import ScoreTable
from ..score.intervals import check_system

__all__ = ["BreakEven", "break_even"]

_HOUR_S = 3600  # prices are for an hour


@dataclass(frozen=True)
class BreakEven:
    """Costs of one query and up front, and the number of queries after which the student is cheaper.

    Attributes:
        teacher_per_query: Cost of one query by the teacher.
        student_per_query: Cost of one query by the student.
        upfront: Cost of the training and of the teacher's answers that it used.
        queries: Number of queries after which the student has paid for itself; None where it is not cheaper
            per query.
        currency: Currency of the costs.
        fields_right: The student's field score, from 0 to 1.
    """

    teacher_per_query: float
    student_per_query: float
    upfront: float
    queries: int | None
    currency: str
    fields_right: float

    def sentence(self, student: str) -> str:
        """The figures as a sentence.

        Args:
            student: Name of the student in the sentence.
        """
        student, currency = one_line(student), one_line(self.currency)
        spent = (
            f"{self.teacher_per_query:.2g} {currency} a query for the teacher, "
            f"{self.student_per_query:.2g} for {student}, {self.upfront:.3g} spent up front"
        )
        if self.queries is None:
            return f"{spent}: {student} is not cheaper per query, so it does not pay for itself."
        return (
            f"{spent}: {student} has paid for itself after {self.queries:,} queries, if its answers are good enough "
            f"({self.fields_right:.0%} of the fields right)."
        )


def break_even(table: ScoreTable, student: str, prices: Prices) -> BreakEven:
    """Compare the teacher's cost per query (mean tokens of the gold answers) with the student's.

    Raises ConfigurationError where no row has token counts or there is no such system.
    """
    used = [row.usage for row in table.rows if row.usage is not None]
    pairs = [(usage.prompt_tokens, usage.completion_tokens) for usage in used]
    counts = [(tokens_in, out) for tokens_in, out in pairs if tokens_in is not None and out is not None]
    if not counts:
        raise ConfigurationError(
            "no example has its teacher's token counts (Example.usage with prompt_tokens and completion_tokens), "
            "which the cost of a query is computed from: capture from a provider that reports them."
        )
    check_system(student, table.systems)
    teacher = sum(prices.of_teacher(*used) for used in counts) / len(counts)
    seconds = table.systems[student].seconds_per_answer
    own = prices.student_per_query + prices.machine_per_hour * seconds / _HOUR_S
    upfront = (
        prices.training_cost
        + prices.machine_per_hour * prices.training_hours
        + prices.training_examples * teacher
    )
    saved = teacher - own
    queries = math.ceil(upfront / saved) if saved > 0 else None
    right = table.systems[student].field_score
    return BreakEven(teacher, own, upfront, queries, prices.currency, right)
