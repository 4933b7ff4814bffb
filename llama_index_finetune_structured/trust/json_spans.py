"""Where the values of a JSON text stand in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

__all__ = ["JsonPath", "JsonSpan", "json_spans"]

JsonPath = tuple[str | int, ...]
"""Keys and indices that lead from the whole answer to a value."""

_SPACE = re.compile(r"[ \t\n\r]*")
_SCALAR = re.compile(r"true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class JsonSpan:
    """One value of a JSON text, in characters of the text.

    ``lead``: where what stands before the value begins: comma and key, or, of a first item, nothing. ``start``,
    ``stop``: of the value itself. ``ending``: of a list or object, where its last item or value stops; None for
    other values.
    """

    path: JsonPath
    lead: int
    start: int
    stop: int
    ending: int | None = None


@dataclass
class _Open:
    """A list or object whose end was not read yet; ``last``: where its last item stopped, or it began."""

    path: JsonPath
    lead: int
    start: int
    is_object: bool
    last: int
    items: int = 0


def json_spans(text: str) -> list[JsonSpan]:
    """The values of a JSON text, each after those inside it; of a repeated key the last one, as parsers take it.

    Raises ValueError where it is no JSON text. Nesting takes no stack of Python's, so any depth is read.
    """
    found: dict[JsonPath, JsonSpan] = {}
    for span in _spans(text):
        if span.path in found:
            depth = len(span.path)
            earlier = [
                path for path, one in found.items() if path[:depth] == span.path and one.start < span.start
            ]
            for path in earlier:
                del found[path]
        found[span.path] = span
    return list(found.values())


def _spans(text: str) -> Iterator[JsonSpan]:
    opened: list[_Open] = []
    at = _after_space(text, 0)
    path: JsonPath = ()
    lead = 0
    while True:
        mark = text[at : at + 1]
        if mark in ("{", "["):
            opened.append(_Open(path, lead, at, mark == "{", at + 1))
            at = _after_space(text, at + 1)
            closes = text[at : at + 1] in ("}", "]")
        else:
            stop = _scalar_end(text, at)
            yield JsonSpan(path, lead, at, stop)
            at, closes = _after_space(text, stop), True
            if opened:
                opened[-1].last = stop
        while closes and opened and text[at : at + 1] != ",":
            done = opened.pop()
            if text[at : at + 1] != ("}" if done.is_object else "]"):
                raise ValueError(f"character {at}: expected the end of a list or object")
            yield JsonSpan(done.path, done.lead, done.start, at + 1, done.last)
            at = _after_space(text, at + 1)
            if opened:
                opened[-1].last = at
        if not opened:
            if at != len(text):
                raise ValueError(f"character {at}: expected the end of the text")
            return
        at, path, lead = _next_item(text, at, opened[-1])


def _next_item(text: str, at: int, parent: _Open) -> tuple[int, JsonPath, int]:
    """Start, path and lead of the next value of an open list or object."""
    lead = parent.last
    if parent.items:
        at = _after_space(text, at + 1)
    part: Any = parent.items
    parent.items += 1
    if parent.is_object:
        if text[at : at + 1] != '"':
            raise ValueError(f"character {at}: expected a key")
        part, at = scanstring(text, at + 1, True)
        at = _after_space(text, at)
        if text[at : at + 1] != ":":
            raise ValueError(f"character {at}: expected a colon")
        at = _after_space(text, at + 1)
    return at, (*parent.path, part), lead


def _scalar_end(text: str, at: int) -> int:
    if text[at : at + 1] == '"':
        return int(scanstring(text, at + 1, True)[1])
    if (found := _SCALAR.match(text, at)) is None:
        raise ValueError(f"character {at}: expected a JSON value")
    return found.end()


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()
