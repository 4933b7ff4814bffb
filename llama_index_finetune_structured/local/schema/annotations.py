"""Remove what says nothing about values.

Beside a reference to a schema inside itself the grammar compiler refuses every keyword that it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...json_schema import map_sub_schemas
from .closing import LEARNED_KEYS, UNENFORCED

__all__ = ["KEYWORDS", "without_annotations"]

KEYWORDS = UNENFORCED | {
    *("$ref", "$id", "id", "$schema", "$anchor", "$dynamicRef", "$dynamicAnchor", "$defs", "definitions"),
    *("type", "enum", "const", "anyOf", "oneOf", "allOf", "title", "description", LEARNED_KEYS),
    *(
        "properties",
        "patternProperties",
        "additionalProperties",
        "required",
        "minProperties",
        "maxProperties",
    ),
    *("items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems", "dependentRequired"),
    *("minLength", "maxLength", "pattern", "format", "minContains", "maxContains"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
"""The keywords that say which values are valid, and those that name schemas or describe them."""


def without_annotations(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a schema without Pydantic's ``discriminator``, defaults, examples and keywords of other tools.

    What a reference leads to or through is kept.
    """
    named = {part for reference in _references(schema) for part in reference.split("/")}
    return _without(schema, KEYWORDS | named)


def _without(node: Mapping[str, Any], kept: frozenset[str] | set[str]) -> dict[str, Any]:
    rest = {keyword: value for keyword, value in node.items() if keyword in kept}
    return map_sub_schemas(
        rest, lambda _, child: _without(child, kept) if isinstance(child, Mapping) else child
    )


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping) and isinstance(reference := node.get("$ref"), str):
        yield reference
    for child in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        yield from _references(child)
