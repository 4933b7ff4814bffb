"""Rows that teach to leave a field out: the lines with its value are left out of the text, the field of the answer.

As counterfactually augmented data (https://arxiv.org/abs/1909.12434): two rows that differ in nothing but what decides.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from ..example import Example, Message, compact_json
from ..json_schema import find_error
from ..local.schema.placed_items import leaves
from ..written_values.kinds import stands_in

__all__ = ["rows_without"]


def rows_without(examples: Iterable[Example], fields: Collection[str]) -> list[Example]:
    """For each example and each of the named fields that it fills, a row without it, where one can be made.

    That is where the schema lets the field be left out or null, and all of its values stand in lines of the last
    message in which no other value of the answer stands alone.
    """
    return [row for example in examples for name in fields for row in _without(example, name)]


def _without(example: Example, name: str) -> Iterator[Example]:
    asked = example.messages[-1]
    if (
        example.answer_schema is None
        or example.transport != "json_schema"
        or not isinstance(asked.content, str)
    ):
        return
    try:
        answer = example.answer_object()
    except ValueError:
        return
    if not isinstance(answer, dict) or not (values := _texts(answer.get(name))):
        return
    left = _left_out(example.answer_schema, answer, name)
    lines = asked.content.split("\n")
    gone = [at for at, line in enumerate(lines) if any(stands_in(value, (line,)) for value in values)]
    removed = tuple(lines[at] for at in gone)
    # With one of two blank lines around it: both would tell that something was left out.
    for at in reversed(gone):
        blank = at > 0 and not lines[at - 1].strip() and not "".join(lines[at + 1 : at + 2]).strip()
        del lines[at - blank : at + 1]
    rest = "\n".join(lines)
    if left is None or not all(stands_in(value, removed) for value in values) or not rest.strip():
        return
    if any(stands_in(value, removed) and not stands_in(value, (rest,)) for value in _texts(left)):
        return
    messages = (*example.messages[:-1], asked.model_copy(update={"content": rest}))
    said = Message(role="assistant", content=compact_json(left))
    yield Example(**{**dict(example), "messages": messages, "answer": said})


def _texts(value: Any) -> list[str]:
    return [str(found) for _, found in leaves(value)]


def _left_out(schema: Mapping[str, Any], answer: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """The answer without a field, or with null for it; None where the schema wants a value."""
    without = {key: value for key, value in answer.items() if key != name}
    for left in (without, {**answer, name: None}):
        if find_error(schema, left) is None:
            return left
    return None
