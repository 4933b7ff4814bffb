"""Break-even: the number of queries after which a tuned model has paid for itself.

From the captured token counts of the teacher, the measured time of the student, and prices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...errors import ConfigurationError
from ...printable import one_line
from ..results import ScoreTable

__all__ = ["BreakEven", "Prices", "break_even"]

_TOKENS, _HOUR_S = 1e6, 3600  # prices are for a million tokens and for an hour


@dataclass(frozen=True)
class Prices:
    """Prices of the teacher and the student, all in one currency.

    For a hosted student that is paid by the token pass ``student_per_query`` and ``training_cost`` instead of
    ``machine_per_hour`` and ``training_hours``.

    Attributes:
        input_per_million: Teacher: price of a million prompt tokens.
        output_per_million: Teacher: price of a million completion tokens.
        machine_per_hour: Student: charged for its measured ``seconds_per_answer`` and for ``training_hours``.
        training_hours: Student: hours of training on that machine.
        training_cost: Student: price of the training at a provider.
        student_per_query: Student: price of one query at a provider.
        training_examples: Number of teacher answers that were paid for to train the student.
        currency: Shown with the figures.
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
    if student not in table.systems:
        raise ConfigurationError(f"no system {student!r}; there are: {one_line(', '.join(table.systems))}")
    spent = sum(i * prices.input_per_million + o * prices.output_per_million for i, o in counts) / _TOKENS
    teacher = spent / len(counts)
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
