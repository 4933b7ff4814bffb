"""Keys of training answers that their schema allows without naming them, with schemas of the values seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ...json_schema import pointer_part, resolve_pointer
from .closing import LEARNED_KEYS
from .objects import KeyOrder, closing_place, matching_patterns, union_keywords

__all__ = ["LearnedKeys", "learn_keys", "sub_values", "with_learned_keys"]

LearnedKeys = dict[str, dict[str, Any]]
"""JSON pointer of an object's schema -> key -> schema of its values."""
_MOST_NAMES = 64  # chosen: an object with more different keys is a map, whose keys are data
_TYPES = {type(None): "null", bool: "boolean", int: "integer", float: "number", str: "string"} | {
    list: "array",
    dict: "object",
}


def learn_keys(schema: Mapping[str, Any], answers: Iterable[Any]) -> LearnedKeys:
    """The keys of the answers that the schema allows without naming or describing them, by place."""
    order = KeyOrder(schema)
    values: dict[str, dict[str, list[Any]]] = {}
    for answer in answers:
        for pointer, name, value in _unnamed(order, schema, "#", answer, alone=True, chain=()):
            values.setdefault(pointer, {}).setdefault(name, []).append(value)
    return {
        pointer: {name: _schema_of(found) for name, found in sorted(names.items())}
        for pointer, names in values.items()
    }


def with_learned_keys(schema: dict[str, Any], learned: LearnedKeys) -> dict[str, Any]:
    """Add learned keys to a schema, in place, under the keyword ``LEARNED_KEYS``."""
    for pointer, names in learned.items():
        node = resolve_pointer(schema, pointer)
        if isinstance(node, dict):
            node[LEARNED_KEYS] = {name: dict(found) for name, found in names.items()}
    return schema


def _schema_of(values: list[Any]) -> dict[str, Any]:
    """A schema that the values fit, and that no value with another type or another key fits."""
    types = sorted({_TYPES[type(value)] for value in values})
    schema: dict[str, Any] = {"type": types[0] if len(types) == 1 else types}
    items = [item for value in values if isinstance(value, list) for item in value]
    if "array" in types:
        schema["items"] = _schema_of(items) if items else False
    if "object" in types:
        inner: dict[str, list[Any]] = {}
        for value in values:
            for name, item in value.items() if isinstance(value, dict) else ():
                inner.setdefault(name, []).append(item)
        if len(inner) > _MOST_NAMES:
            return schema | {
                "additionalProperties": _schema_of([v for found in inner.values() for v in found])
            }
        schema["properties"] = {name: _schema_of(found) for name, found in sorted(inner.items())}
        schema["additionalProperties"] = False
    return schema


def sub_values(node: Mapping[str, Any], value: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield relative pointer, schema and value of the items or properties of a value, by one schema of it."""
    if isinstance(value, list):
        items, further = node.get("items"), "items"
        first, keyword = node.get("prefixItems", []), "prefixItems"
        if isinstance(items, list):  # as drafts before 2020-12 write prefixItems
            first, keyword, further = items, "items", "additionalItems"
        for n, item in enumerate(value):
            if n < len(first):
                yield f"{keyword}/{n}", first[n], item
            elif further in node:
                yield further, node[further], item
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _of_key(node, name, item)


def _of_key(node: Mapping[str, Any], name: str, item: Any) -> Iterator[tuple[str, Any, Any]]:
    found = False
    for keyword in ("properties", LEARNED_KEYS):
        names = node.get(keyword)
        if isinstance(names, Mapping) and name in names:
            found = True
            yield f"{keyword}/{pointer_part(name)}", names[name], item
    for pattern in matching_patterns(node, name):
        found = True
        yield f"patternProperties/{pointer_part(pattern)}", node["patternProperties"][pattern], item
    if not found and "additionalProperties" in node:
        yield "additionalProperties", node["additionalProperties"], item


def _unnamed(
    order: KeyOrder, node: Any, pointer: str, value: Any, *, alone: bool, chain: tuple[str, ...]
) -> Iterator[tuple[str, str, Any]]:
    """Yield pointer, key and value. ``alone``: no other schema holds for the same value; ``chain``: references."""
    if not isinstance(node, Mapping) or not isinstance(value, dict | list):
        return
    if alone and closing_place(order.root, node) == "here":
        alone = False
        if isinstance(value, dict):
            for name in order.learned_keys(node, value):
                yield pointer, name, value[name]
    for place, branch, followed in _in_place(order, node, pointer, value, chain):
        yield from _unnamed(order, branch, place, value, alone=alone, chain=followed)
    for place, child, item in sub_values(node, value):
        yield from _unnamed(order, child, f"{pointer}/{place}", item, alone=True, chain=())


def _in_place(
    order: KeyOrder, node: Mapping[str, Any], pointer: str, value: Any, chain: tuple[str, ...]
) -> Iterator[tuple[str, Any, tuple[str, ...]]]:
    """Yield pointer and schema of the members of a schema that hold for a value too."""
    reference = node.get("$ref")
    if isinstance(reference, str) and reference not in chain:
        yield reference, resolve_pointer(order.root, reference), (*chain, reference)
    for n, branch in enumerate(node.get("allOf", ())):
        yield f"{pointer}/allOf/{n}", branch, chain
    for keyword in union_keywords(node):
        for n in order.fitting(node[keyword], value):
            yield f"{pointer}/{keyword}/{n}", node[keyword][n], chain
