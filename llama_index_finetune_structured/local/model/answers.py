"""Structured answers in the one spelling that training teaches and the grammar enforces."""

from __future__ import annotations

from ...errors import DatasetError
from ...example import Example, compact_json
from ...json_schema import in_schema_order

__all__ = ["answer_text"]


def answer_text(example: Example) -> str:
    """The text an example is trained to answer: JSON without spaces, keys in the schema's order; or plain text.

    Raises DatasetError where an answer with a schema is no JSON.
    """
    if example.answer_schema is None:
        return example.answer_text()
    try:
        return compact_json(in_schema_order(example.answer_schema, example.answer_object()))
    except ValueError as error:
        raise DatasetError(
            f"example {example.id[:12]}: it carries a schema and its answer is no JSON ({error}): mend or drop it"
        ) from error
