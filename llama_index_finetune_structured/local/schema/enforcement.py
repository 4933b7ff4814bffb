"""Name what of a schema a grammar does not enforce: such answers are refused by the class only, after they are made."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ...json_schema import sub_schemas
from .closing import UNENFORCED
from .grammar_schema import with_named_keys
from .string_formats import GRAMMAR_FORMATS, LOOSE_PATTERNS, PATTERNS, decimal_digits, expressible

__all__ = ["not_enforced"]

_KEYWORDS = (
    *("not", "if", "contains", "minContains", "maxContains", "dependentRequired"),
    *("dependentSchemas", "dependencies", "unevaluatedItems", "unevaluatedProperties", "propertyNames"),
    *("$dynamicRef", "$recursiveRef"),
)


def not_enforced(schema: Mapping[str, Any]) -> list[str]:
    """What the grammar of a schema lets through although the schema forbids it.

    Args:
        schema: A JSON schema.

    Returns:
        JSON pointers of keywords, such as ``#/properties/tags/uniqueItems``; a pattern or format is followed by
        its value.
    """
    return sorted(_found(with_named_keys(schema), "#"))


def _found(node: Any, pointer: str) -> Iterator[str]:
    if not isinstance(node, Mapping):
        return
    yield from (f"{pointer}/{keyword}" for keyword in _KEYWORDS if node.get(keyword) not in (None, True, {}))
    if node.get("uniqueItems") is True:
        yield f"{pointer}/uniqueItems"
    yield from _unions_and_counts(node, pointer)
    yield from _texts(node, pointer)
    for keyword, place, child in sub_schemas(node):
        if keyword not in UNENFORCED:
            yield from _found(child, f"{pointer}/{place}")


def _unions_and_counts(node: Mapping[str, Any], pointer: str) -> Iterator[str]:
    branches = node.get("oneOf")
    if isinstance(branches, list) and len(branches) > 1 and "discriminator" not in node:
        yield f"{pointer}/oneOf"  # a value that fits two branches is let through
    if node.get("properties"):
        yield from (
            f"{pointer}/{keyword}" for keyword in ("minProperties", "maxProperties") if keyword in node
        )
    reference = node.get("$ref")
    if isinstance(reference, str) and not re.match(r"#(/|$)", reference):
        yield f"{pointer}/$ref: {reference}"


def _texts(node: Mapping[str, Any], pointer: str) -> Iterator[str]:
    pattern, name = node.get("pattern"), node.get("format")
    if isinstance(pattern, str) and not expressible(pattern) and decimal_digits(pattern) is None:
        yield f"{pointer}/pattern: {pattern}"
    if (
        isinstance(name, str)
        and name not in GRAMMAR_FORMATS
        and (name not in PATTERNS or pattern is not None or name in LOOSE_PATTERNS)
    ):
        yield f"{pointer}/format: {name}"
    for key_pattern in node.get("patternProperties", {}):
        if not expressible(key_pattern):
            yield f"{pointer}/patternProperties: {key_pattern}"
