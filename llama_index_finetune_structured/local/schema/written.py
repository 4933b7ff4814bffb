"""The form in which an answer is trained, and in which its grammar lets it be written."""

from __future__ import annotations

import json
from typing import Any

from ...example import Example
from .message_texts import caller_texts, without_schema_text
from .objects import in_schema_order

__all__ = ["is_by_text", "written_answer"]


def written_answer(example: Example, value: Any) -> Any:
    """The answer of an example that has a schema: keys in the schema's order, those that may be left out in the text's.

    The text is that of the messages which are no instruction. ``value``: the answer, parsed.
    """
    return in_schema_order(
        example.answer_schema or {}, value, "\n".join(caller_texts(without_schema_text(example)))
    )


def is_by_text(example: Example, value: Any) -> bool:
    """Whether the text's order of keys differs from the schema's."""
    written = written_answer(example, value)
    return json.dumps(written) != json.dumps(in_schema_order(example.answer_schema or {}, value))
