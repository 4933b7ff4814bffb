"""Prices of a teacher and a student, all in one currency."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Prices"]

_TOKENS = 1e6  # prices are for a million tokens


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

    def of_teacher(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Price of a call of the teacher.

        Args:
            prompt_tokens: Tokens of the messages.
            completion_tokens: Tokens of the answer.
        """
        return (
            prompt_tokens * self.input_per_million + completion_tokens * self.output_per_million
        ) / _TOKENS
