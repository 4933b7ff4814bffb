"""Schema evolution: validate the answers of a data set against a changed Pydantic model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from ..errors import DatasetError
from ..example import Example
from ..formats.transports import render
from ..jsonl import one_line_reason
from ..local.schema.message_texts import without_schema_text
from ..printable import printable
from .labels import AnswerShape

__all__ = ["LostRow", "Revalidation", "revalidate"]


@dataclass(frozen=True)
class LostRow:
    """A row whose answer the new model rejects.

    Attributes:
        row: Row of the data set, from 0.
        example: The row unchanged.
        reason: What is wrong, with the field.
    """

    row: int
    example: Example
    reason: str


@dataclass(frozen=True)
class Revalidation:
    """The rows that are still valid, were migrated, or are lost.

    Attributes:
        examples: The valid and migrated ones, in the order of the rows, with the new schema.
        held: Rows that are still valid, from 0.
        migrated: Rows with an answer of ``migrate``, from 0.
        lost: Rows that were left out, with the reason.
    """

    examples: tuple[Example, ...]
    held: tuple[int, ...]
    migrated: tuple[int, ...]
    lost: tuple[LostRow, ...]

    def __repr__(self) -> str:
        """Short: the rows could fill a terminal."""
        return f"<Revalidation: {self._counts()}>"

    def _counts(self) -> str:
        return f"{len(self.held)} rows still valid, {len(self.migrated)} migrated, {len(self.lost)} lost"

    def __str__(self) -> str:
        return printable(
            "\n".join([self._counts(), *(f"  row {lost.row}: {lost.reason}" for lost in self.lost)])
        )


def revalidate(
    examples: Sequence[Example], output_cls: type[BaseModel], migrate: Callable[[Any], Any] | None
) -> Revalidation:
    """See FinetuneDataset.revalidate."""
    shape = AnswerShape(output_cls, None)
    kept, held, migrated, lost = [], [], [], []
    for row, example in enumerate(examples):
        try:
            kept.append(_with_answer(example, shape, example.answer_text()))
            held.append(row)
            continue
        except ValueError as error:
            reason = one_line_reason(error)
        try:
            answer = None if migrate is None else migrate(example.answer_object())
            if answer is not None:
                text = shape.answer_text(answer, without_schema_text(example))
                kept.append(_with_answer(example, shape, text))
                migrated.append(row)
                continue
        except Exception as error:  # the user's function may raise anything; the row's reason names it
            reason = f"{reason}; after migrate: {one_line_reason(error)}"
        lost.append(LostRow(row, example, reason))
    return Revalidation(tuple(kept), tuple(held), tuple(migrated), tuple(lost))


def _with_answer(example: Example, shape: AnswerShape, text: str) -> Example:
    """The example with the new schema, over its own transport, and ``text`` as the new class writes it.

    Raises ValueError where the answer does not fit.
    """
    answer = shape.answer_text(text, without_schema_text(example))
    # An example without a schema has none to remove from its prompt, so it may be relabelled as it is.
    structured = (
        example
        if example.answer_schema is not None
        else example.model_copy(update={"transport": "json_schema"})
    )
    bare = render(structured, "json_schema")
    renewed = bare.model_copy(
        update={
            "answer": bare.answer.model_copy(update={"content": answer}),
            "answer_schema": shape.schema,
            "schema_name": shape.name,
            "answer_class": shape.class_path,
            "response_format": None,
        }
    )
    transport = "json_schema" if example.answer_schema is None else example.transport
    try:
        return render(renewed, transport)
    except DatasetError as error:
        raise ValueError(f"cannot be rendered again for transport {transport!r}: {error}") from error
