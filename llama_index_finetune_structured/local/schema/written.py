"""The form in which an answer is trained, and in which its grammar lets it be written."""

from __future__ import annotations

from typing import Any

from ...example import Example
from .drafts import by_reference_alone
from .message_texts import caller_texts, without_schema_text
from .objects import KeyOrder

__all__ = ["is_by_text", "written_answer"]


def written_answer(example: Example, value: Any) -> Any:
    """The answer of an example that has a schema: keys in the schema's order, those that may be left out in the text's.

    The text is that of the messages which are no instruction. ``value``: the answer, parsed.
    """
    order = _order(example)
    return order.ordered(order.root, value)


def is_by_text(example: Example, value: Any) -> bool:
    """Whether the text's order of keys differs from the schema's."""
    order = _order(example)
    order.ordered(order.root, value)
    return order.by_text


def _order(example: Example) -> KeyOrder:
    root = by_reference_alone(dict(example.answer_schema or {}))
    return KeyOrder(root, "\n".join(caller_texts(without_schema_text(example))))
