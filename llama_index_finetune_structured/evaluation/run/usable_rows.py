"""The examples that can be scored; one whose own answer is not valid is left out, with the reason."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from ...capture.error_text import error_text
from ...errors import DatasetError
from ...example import Example
from .target import ERROR_CHARACTERS, AnswerTarget, target_of

__all__ = ["LeftOut", "usable_targets"]


class LeftOut(BaseModel):
    """An example that was not asked.

    Attributes:
        row: Row of the data set, from 0.
        example_id: ``Example.id``.
        reason: Why its own answer is no gold to compare with.
    """

    model_config = ConfigDict(frozen=True)

    row: int
    example_id: str
    reason: str


def usable_targets(
    examples: Iterable[Example], output_cls: type[BaseModel] | None
) -> tuple[list[AnswerTarget], tuple[LeftOut, ...]]:
    """The targets of the examples whose own answer is valid, and the other examples.

    Raises DatasetError where no example is left.
    """
    targets: list[AnswerTarget] = []
    left_out: list[LeftOut] = []
    for row, example in enumerate(examples):
        try:
            targets.append(target_of(example, output_cls))
        except DatasetError as error:
            left_out.append(LeftOut(row=row, example_id=example.id, reason=str(error)[:ERROR_CHARACTERS]))
        except (
            Exception
        ) as error:  # a validator of the user's class may raise anything, as may a broken schema
            reason = f"{type(error).__name__}: {error_text(error)}"[:ERROR_CHARACTERS]
            left_out.append(LeftOut(row=row, example_id=example.id, reason=reason))
    if left_out and not targets:
        raise DatasetError(
            f"nothing to compare on: the answers of all {len(left_out)} examples are not valid; "
            f"the first: {left_out[0].reason}"
        )
    if not targets:
        raise DatasetError("nothing to compare on: the data set is empty")
    return targets, tuple(left_out)
