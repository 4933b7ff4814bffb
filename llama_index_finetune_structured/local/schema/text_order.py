"""The keys that an object may leave out, in the order in which their values stand in the text.

A model reads a text from left to right. Where an answer repeats parts of it under keys most of which are left out, the
schema's order makes the model decide at each key whether any later word is one of those; in the text's order it only
names what comes next.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...json_schema import map_sub_schemas

__all__ = ["FreeKeys", "by_text", "optional_keys", "with_free_keys"]

FreeKeys = tuple[frozenset[str], ...]
"""The keys of each object that has some in any order."""
_OBJECT = ("type", "properties", "required", "additionalProperties")
_BESIDE = {"$defs", "definitions", "$schema", "$id", "title", "description", "default", "examples"}
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")  # neither JSON nor a pattern writes it in another way
_DEFINITION = re.compile(r"#|#/(?:\$defs|definitions)/[^/]+")


def optional_keys(schema: Mapping[str, Any]) -> list[str]:
    """The keys that objects may leave out, of a schema that has several and says no more than keys and values."""
    properties, required = schema.get("properties"), schema.get("required", ())
    if not isinstance(properties, Mapping) or not schema.keys() <= {*_OBJECT, *_BESIDE}:
        return []
    if schema.get("additionalProperties", False) is not False or schema.get("type", "object") != "object":
        return []
    optional = [name for name in properties if name not in required]
    plain = all(map(_PLAIN_KEY.fullmatch, properties)) and set(required) <= set(properties)
    return optional if plain and len(optional) > 1 else []


def with_free_keys(schema: Mapping[str, Any]) -> tuple[dict[str, Any], FreeKeys]:
    """Copy a closed schema so that keys which objects may leave out can stand in any order, after the others.

    The schema's own order stays allowed. The copy allows a key several times: a rule on the text refuses that. Also
    returns the keys of each such object.
    """
    found: list[frozenset[str]] = []

    def free(_: str, node: Any) -> Any:
        if not isinstance(node, Mapping):
            return node
        copy = map_sub_schemas(node, free)
        optional = optional_keys(node)
        if not optional:
            return copy
        fields = copy["properties"]
        found.append(frozenset(fields))
        ordered = {keyword: copy.pop(keyword) for keyword in _OBJECT if keyword in copy}
        any_order = {
            **ordered,
            "properties": {name: fields[name] for name in fields if name not in optional},
            "patternProperties": {f"^{name}$": fields[name] for name in optional},
            "additionalProperties": False,
        }
        return {**copy, "anyOf": [any_order, ordered]}

    if not all(
        map(_DEFINITION.fullmatch, _references(schema))
    ):  # they may lead into an object that is wrapped
        return dict(schema), ()
    return free("", schema), tuple(dict.fromkeys(found))


def _references(schema: Mapping[str, Any]) -> list[str]:
    found: list[str] = []

    def collect(_: str, node: Any) -> Any:
        if isinstance(node, Mapping):
            if isinstance(node.get("$ref"), str):
                found.append(node["$ref"])
            map_sub_schemas(node, collect)
        return node

    collect("", schema)
    return found


def by_text(names: Sequence[str], optional: Sequence[str], value: Mapping[str, Any], text: str) -> list[str]:
    """The keys of an object, those that may be left out as their values stand in the text.

    In their own order where a value is no text, or does not stand there as whole words. Of a list of texts the first
    one counts.
    """
    places: dict[str, int] = {}
    for name in names:
        if name in optional:
            place = _place(value[name], text)
            if place is None:
                return list(names)
            places[name] = place
    first = [name for name in names if name not in places]
    return [*first, *sorted(places, key=lambda name: places[name])] if len(places) > 1 else list(names)


def _place(value: Any, text: str) -> int | None:
    words = value[0] if isinstance(value, list) and value else value
    if not isinstance(words, str) or not words:
        return None
    found = re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text)
    return found.start() if found else None
