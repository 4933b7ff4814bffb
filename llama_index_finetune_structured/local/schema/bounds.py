"""Bounds for unbounded lists and strings of a schema, learned from the training answers.

Under a grammar an unbounded schema can run to the token limit and end as broken JSON. A bound stands at a place
in the schema, written as a JSON pointer (``#/properties/authors``), and is never tighter than the longest value
that training showed there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ...example import Example, canonical_json, content_hash
from ...json_schema import UNIONS, pointer_part, resolve_pointer, without_titles
from .string_formats import KNOWN_FORMATS, PATTERNS, SHORT_FORMATS

__all__ = ["AnswerBounds", "bounded_schema", "bounds_hit", "learn_bounds", "schema_key"]

_LIMITS = {"array": "maxItems", "string": "maxLength", "object": "maxProperties"}
_LEAST = {"array": "minItems", "string": "minLength", "object": "minProperties"}
_SELF_BOUNDED = ("enum", "const")
_ENDLESS = re.compile(r"^(?!\^)|(?<!\$)$|[*+]|,\}")
_LOOKAROUND = ("(?=", "(?!", "(?<")


class AnswerBounds(BaseModel):
    """Longest list and string by place in a schema; places that training never showed get the defaults.

    ``longest`` maps schema key -> JSON pointer -> items, characters or properties. ``distinct``: keys of the
    schemas whose training answers have lists of objects, and none in which an object stands twice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    longest: dict[str, dict[str, int]] = Field(default_factory=dict)
    distinct: tuple[str, ...] = ()
    default_items: int = Field(default=32, gt=0)
    default_characters: int = Field(default=400, gt=0)

    def limit(self, key: str, pointer: str, kind: str) -> int:
        """Twice the longest value seen in training, and room for a few more; else the default."""
        seen = self.longest.get(key, {}).get(pointer)
        if seen is None:
            return self.default_characters if kind == "string" else self.default_items
        return max(2 * seen, 80 if kind == "string" else 8)


def schema_key(schema: Mapping[str, Any]) -> str:
    """By what a schema's bounds are found: its content less the titles, as the model is shown it."""
    return content_hash(without_titles(schema))


def learn_bounds(examples: Iterable[Example]) -> AnswerBounds:
    """The longest list, string and free-form object of every schema's places, and where no list repeats itself."""
    longest: dict[str, dict[str, int]] = {}
    distinct: dict[str, bool] = {}
    for example in examples:
        if example.answer_schema is None:
            continue
        key = schema_key(example.answer_schema)
        seen = longest.setdefault(key, {})
        for pointer, _, value in _places(example.answer_schema, example.answer_object()):
            seen[pointer] = max(seen.get(pointer, 0), len(value))
            if isinstance(value, list) and sum(isinstance(item, dict) for item in value) > 1:
                all_differ = len({canonical_json(item) for item in value}) == len(value)
                distinct[key] = all_differ and distinct.get(key, True)
    return AnswerBounds(longest=longest, distinct=tuple(sorted(key for key in distinct if distinct[key])))


def bounded_schema(schema: Mapping[str, Any], key: str, bounds: AnswerBounds) -> dict[str, Any]:
    """A copy of the schema in which every unbounded list, string and free-form object has a bound.

    ``key``: the :func:`schema_key` that training knew the answers by. Objects with named properties take no
    others, and string formats that no grammar knows are left out.
    """
    bounded: dict[str, Any] = _closed(schema)
    for pointer, kind, node in _unbounded(bounded, "#"):
        node[_LIMITS[kind]] = max(bounds.limit(key, pointer, kind), 2 * node.get(_LEAST[kind], 0))
    return bounded


def bounds_hit(bounded: Mapping[str, Any], original: Mapping[str, Any], answer: Any) -> list[str]:
    """The places at which an answer is as long as the added bound allows: it may have been cut there."""
    added = {
        pointer: node[_LIMITS[kind]]
        for (pointer, kind, _), node in (
            (place, resolve_pointer(bounded, place[0])) for place in _unbounded(_closed(original), "#")
        )
    }
    return sorted(
        {
            pointer
            for pointer, _, value in _places(original, answer)
            if len(value) >= added.get(pointer, len(value) + 1)
        }
    )


def _closed(node: Any) -> Any:
    """The schema with closed objects and without what no grammar can say, which pydantic still checks."""
    if isinstance(node, list):
        return [_closed(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    closed = {key: _closed(value) for key, value in node.items()}
    if _kind(closed) == "object" and isinstance(closed.get("properties"), dict):
        closed.setdefault("additionalProperties", False)
    if _kind(closed) == "string":
        _say_format(closed)
    if expressible := [branch for branch in closed.get("anyOf", ()) if not _looks_around(branch)]:
        closed["anyOf"] = expressible
    elif _looks_around(closed):
        del closed["pattern"]
    return closed


def _say_format(node: dict[str, Any]) -> None:
    """Most formats become patterns: as a format, a time might be 23:59:60 and a date the 30th of February."""
    name = node.get("format")
    if name in PATTERNS and "pattern" not in node:
        node["pattern"] = PATTERNS[node.pop("format")]
    elif name not in KNOWN_FORMATS:
        node.pop("format", None)


def _looks_around(node: Any) -> bool:
    return isinstance(node, Mapping) and any(mark in str(node.get("pattern", "")) for mark in _LOOKAROUND)


def _kind(node: Mapping[str, Any]) -> str | None:
    kind = node.get("type")
    return kind if isinstance(kind, str) and kind in _LIMITS else None


def _unbounded(node: Any, pointer: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every place in a schema that can grow without end."""
    if isinstance(node, list):
        for n, item in enumerate(node):
            yield from _unbounded(item, f"{pointer}/{n}")
        return
    if not isinstance(node, dict):
        return
    kind = _kind(node)
    free_form = kind != "object" or node.get("additionalProperties", False) not in (False, True)
    if kind and free_form and _LIMITS[kind] not in node and not _bounds_itself(node):
        yield pointer, kind, node
    for key in ("properties", "$defs", "definitions"):
        for name, child in node.get(key, {}).items():
            yield from _unbounded(child, f"{pointer}/{key}/{pointer_part(name)}")
    for key in ("items", "additionalProperties", "anyOf", "oneOf", "allOf", "prefixItems"):
        yield from _unbounded(node.get(key), f"{pointer}/{key}")


def _bounds_itself(node: Mapping[str, Any]) -> bool:
    """Whether a string can only be so long: by its values, its format, or a pattern that says where it ends."""
    pattern = node.get("pattern")
    if pattern is not None:
        return not _ENDLESS.search(str(pattern))
    return node.get("format") in SHORT_FORMATS or any(mark in node for mark in _SELF_BOUNDED)


def _places(root: Mapping[str, Any], answer: Any) -> Iterator[tuple[str, str, Any]]:
    """Every list, string and object of an answer, with the pointer of the schema place it fills."""
    yield from _walk(root, root, "#", answer)


def _walk(root: Mapping[str, Any], node: Any, pointer: str, value: Any) -> Iterator[tuple[str, str, Any]]:
    if not isinstance(node, Mapping):
        return
    if isinstance(reference := node.get("$ref"), str):
        yield from _walk(root, resolve_pointer(root, reference), reference, value)
        return
    for key in UNIONS:
        for n, branch in enumerate(node.get(key, ())):
            yield from _walk(root, branch, f"{pointer}/{key}/{n}", value)
    kind = _kind(node)
    if (kind, type(value)) not in {("array", list), ("string", str), ("object", dict)} or kind is None:
        return
    yield pointer, kind, value
    if isinstance(value, list):
        yield from _walk_items(root, node, pointer, value)
    elif isinstance(value, dict):
        for name, item in value.items():
            known = name in node.get("properties", {})
            child = node["properties"][name] if known else node.get("additionalProperties")
            place = f"properties/{pointer_part(name)}" if known else "additionalProperties"
            yield from _walk(root, child, f"{pointer}/{place}", item)


def _walk_items(
    root: Mapping[str, Any], node: Mapping[str, Any], pointer: str, value: list[Any]
) -> Iterator[tuple[str, str, Any]]:
    first = node.get("prefixItems", [])
    for n, item in enumerate(value):
        if n < len(first):
            yield from _walk(root, first[n], f"{pointer}/prefixItems/{n}", item)
        else:
            yield from _walk(root, node.get("items"), f"{pointer}/items", item)
