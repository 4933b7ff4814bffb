"""What the grammar learns from training answers: longest lists, strings and objects, and lists without repeats.

Without them constrained generation can run to the token limit and end as broken JSON. A bound belongs to a place
in the schema, a JSON pointer such as ``#/properties/authors``, and is never tighter than the longest value in the
training answers at that place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ...example import Example, canonical_json, content_hash
from ...json_schema import UNIONS, pointer_part, resolve_pointer, without_titles
from .string_formats import GRAMMAR_FORMATS, PATTERNS, SHORT_FORMATS

__all__ = ["AnswerBounds", "bounded_schema", "bounds_hit", "learn_bounds", "schema_key"]

_LIMITS = {"array": "maxItems", "string": "maxLength", "object": "maxProperties"}
_LEAST = {"array": "minItems", "string": "minLength", "object": "minProperties"}
_SELF_BOUNDED = ("enum", "const")
# A pattern that text of any length can match: not anchored at both ends, or with *, + or {n,}.
_ENDLESS = re.compile(r"^(?!\^)|(?<!\$)$|[*+]|,\}")
_LOOKAROUND = ("(?=", "(?!", "(?<")  # grammars have no lookaround
# Smallest bounds, chosen: where training has short values only, a longer one may still come.
_LEAST_CHARACTERS, _LEAST_ITEMS = 80, 8


class AnswerBounds(BaseModel):
    """The longest values of the training answers, by schema and place in it.

    Attributes:
        longest: ``schema_key`` of a schema -> JSON pointer into it -> items, characters or properties.
        distinct: Keys of the schemas whose training answers have lists of several objects, and no list with
            the same object twice.
        default_items: Bound of lists and free-form objects that no training answer fills; 32 by default
            (chosen).
        default_characters: Bound of strings that no training answer fills; 400 by default (chosen).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    longest: dict[str, dict[str, int]] = Field(default_factory=dict)
    distinct: tuple[str, ...] = ()
    default_items: int = Field(default=32, gt=0)
    default_characters: int = Field(default=400, gt=0)

    def limit(self, key: str, pointer: str, kind: str) -> int:
        """The bound at a place: twice the longest training value, at least 80 characters or 8 items.

        Places that no training answer fills get the default.

        Args:
            key: The schema's ``schema_key``.
            pointer: JSON pointer of the place in the schema.
            kind: ``string``, ``array`` or ``object``.

        Returns:
            Characters of a string, items of an array or properties of an object.
        """
        seen = self.longest.get(key, {}).get(pointer)
        if seen is None:
            return self.default_characters if kind == "string" else self.default_items
        return max(2 * seen, _LEAST_CHARACTERS if kind == "string" else _LEAST_ITEMS)


def schema_key(schema: Mapping[str, Any]) -> str:
    """Lookup key for a schema's bounds: content hash without titles, which prompts leave out too."""
    return content_hash(without_titles(schema))


def learn_bounds(examples: Iterable[Example]) -> AnswerBounds:
    """Learn the bounds from the answers of examples that have a schema; the others are skipped."""
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
    """Copy a schema and bound every unbounded list, string and free-form object in it.

    ``key``: the ``schema_key`` of the schema in training. In the copy, objects with named properties allow no
    others, and string formats and patterns that grammars do not support are removed; pydantic checks those.
    """
    bounded: dict[str, Any] = _closed(schema)
    for pointer, kind, node in _unbounded(bounded, "#"):
        node[_LIMITS[kind]] = max(bounds.limit(key, pointer, kind), 2 * node.get(_LEAST[kind], 0))
    return bounded


def bounds_hit(bounded: Mapping[str, Any], original: Mapping[str, Any], answer: Any) -> list[str]:
    """The JSON pointers where an answer is as long as the added bound allows: it may have been cut there.

    ``bounded``: ``bounded_schema`` of ``original``. A bound of the original schema does not count.
    """
    unbounded = _unbounded(_closed(original), "#")
    added = {pointer: resolve_pointer(bounded, pointer)[_LIMITS[kind]] for pointer, kind, _ in unbounded}
    values = _places(original, answer)
    return sorted({pointer for pointer, _, value in values if len(value) >= added.get(pointer, math.inf)})


def _closed(node: Any) -> Any:
    """Copy a schema with closed objects and without what grammars do not support; pydantic checks that later."""
    if isinstance(node, list):
        return [_closed(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    closed = {key: _closed(value) for key, value in node.items()}
    if _kind(closed) == "object" and isinstance(closed.get("properties"), dict):
        closed.setdefault("additionalProperties", False)
    if _kind(closed) == "string":
        _translate_format(closed)
    if expressible := [branch for branch in closed.get("anyOf", ()) if not _looks_around(branch)]:
        closed["anyOf"] = expressible
    elif _looks_around(closed):
        del closed["pattern"]
    return closed


def _translate_format(node: dict[str, Any]) -> None:
    """Replace a string format by its pattern, if it has one; remove formats that grammars do not support.

    Patterns are stricter: by the grammar's own formats a time can be 23:59:60 and a date the 30th of February.
    """
    name = node.get("format")
    if name in PATTERNS and "pattern" not in node:
        node["pattern"] = PATTERNS[node.pop("format")]
    elif name not in GRAMMAR_FORMATS:
        node.pop("format", None)


def _looks_around(node: Any) -> bool:
    return isinstance(node, Mapping) and any(
        opening in str(node.get("pattern", "")) for opening in _LOOKAROUND
    )


def _kind(node: Mapping[str, Any]) -> str | None:
    """``array``, ``string`` or ``object``, the types that a bound exists for; else None."""
    kind = node.get("type")
    return kind if isinstance(kind, str) and kind in _LIMITS else None


def _unbounded(node: Any, pointer: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield pointer, type and sub-schema of every place whose values have no longest."""
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
    """Whether a string's length is limited by its values, its format, or a pattern that ends."""
    pattern = node.get("pattern")
    if pattern is not None:
        return not _ENDLESS.search(str(pattern))
    return node.get("format") in SHORT_FORMATS or any(keyword in node for keyword in _SELF_BOUNDED)


def _places(root: Mapping[str, Any], answer: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield pointer, type and value of every list, string and object of an answer."""
    yield from _walk(root, root, "#", answer)


def _walk(root: Mapping[str, Any], node: Any, pointer: str, value: Any) -> Iterator[tuple[str, str, Any]]:
    """As ``_places``, for a value and the sub-schema ``node`` at ``pointer``.

    All branches of a union are walked: a value counts at each branch whose type it has.
    """
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
