"""The form in which an answer is trained, and in which its grammar lets it be written."""

from __future__ import annotations

import json
from typing import Any

from ...example import Example
from .objects import in_schema_order

__all__ = ["is_by_text", "written_answer"]


def written_answer(example: Example, value: Any) -> Any:
    """The answer of an example that has a schema: keys in the schema's order, those that may be left out in the text's.

    The text is that of the messages which are no instruction. ``value``: the answer, parsed.
    """
    return in_schema_order(example.answer_schema or {}, value, _text(example))


def is_by_text(example: Example, value: Any) -> bool:
    """Whether the text's order of keys differs from the schema's."""
    written = written_answer(example, value)
    return json.dumps(written) != json.dumps(in_schema_order(example.answer_schema or {}, value))


def _text(example: Example) -> str:
    contents = [m.content for m in example.messages if m.role not in ("system", "developer")]
    parts = [part for content in contents for part in (content if isinstance(content, list) else [content])]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    return "\n".join(text for text in texts if isinstance(text, str))
