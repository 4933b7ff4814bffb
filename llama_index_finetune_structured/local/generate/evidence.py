"""Where the grounded values of an answer stand in the messages of its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..schema.grounding import GroundedRule, GroundedSchema, Leaf, grounded_leaves, occurrences

__all__ = ["evidence_of"]

_Spot = tuple[int, int]  # message, offset in its content


def evidence_of(answer: Any, schema: GroundedSchema, contents: Sequence[str | None]) -> list[dict[str, Any]]:
    """One entry for each grounded value: ``path`` in the answer, ``message``, ``start`` and ``end``.

    ``contents``: of the messages by index; None: no text of the prompt. ``contents[message][start:end]`` is the
    value. Of several occurrences it is the next after that of the list's item before, else the first. ``message``,
    ``start`` and ``end`` are None where the value stands in no message, as a value that training had so.
    """
    found: list[dict[str, Any]] = []
    previous: dict[tuple[Any, ...], _Spot] = {}
    for leaf, rule in grounded_leaves(schema.answer, answer):
        place = (leaf.kind, *(0 if isinstance(part, int) else part for part in leaf.path))
        spot = _spot(leaf, rule, contents, previous.get(place)) or _spot(leaf, rule, contents, None)
        entry: dict[str, Any] = {"path": list(leaf.path), "message": None, "start": None, "end": None}
        if spot is not None:
            message, start = spot
            end = start + len(leaf.text)
            entry |= {"message": message, "start": start, "end": end}
            previous[place] = message, end
        found.append(entry)
    return found


def _spot(
    leaf: Leaf, rule: GroundedRule, contents: Sequence[str | None], after: _Spot | None
) -> _Spot | None:
    """The first occurrence of a value from a spot on, one that fits the rule before one that does not."""
    first: _Spot | None = None
    begin_message, begin = after or (0, 0)
    for message in range(begin_message, len(contents)):
        content = contents[message] or ""
        for start, starts, ends in occurrences(content, leaf, begin if message == begin_message else 0):
            if (starts or not rule.starts) and (ends or not rule.ends):
                return message, start
            first = first or (message, start)
    return first
