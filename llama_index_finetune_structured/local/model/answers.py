"""Structured answers in the one spelling that training teaches and the grammar enforces."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import DatasetError
from ...example import Example

__all__ = ["answer_text"]


def answer_text(example: Example) -> str:
    """The text an example is trained to answer: JSON without spaces, keys in the schema's order; or plain text.

    Raises DatasetError where an answer with a schema is no JSON.
    """
    if example.answer_schema is None:
        return example.answer_text()
    try:
        ordered = _in_schema_order(example.answer_schema, example.answer_schema, example.answer_object())
        return json.dumps(ordered, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise DatasetError(
            f"example {example.id[:12]}: it carries a schema and its answer is no JSON ({error}): mend or drop it"
        ) from error


def _in_schema_order(root: Mapping[str, Any], node: Any, value: Any) -> Any:
    branches = list(_branches(root, node))
    if isinstance(value, list):
        first, rest = _first(branches, "prefixItems", ()), _first(branches, "items", None)
        nodes = [*first[: len(value)], *[rest] * (len(value) - len(first))]
        return [_in_schema_order(root, node, item) for node, item in zip(nodes, value, strict=True)]
    if not isinstance(value, dict):
        return value
    # Of a union, that branch which knows most of the value's keys.
    known = [branch.get("properties", {}) for branch in branches]
    properties = max(known, key=lambda properties: len(value.keys() & properties.keys()))
    names = [name for name in properties if name in value] + [
        name for name in value if name not in properties
    ]
    rest = _first(branches, "additionalProperties", None)
    return {name: _in_schema_order(root, properties.get(name, rest), value[name]) for name in names}


def _branches(root: Mapping[str, Any], node: Any) -> Iterator[Mapping[str, Any]]:
    """A schema's node and, of a union, its branches."""
    node = _target(root, node)
    yield node
    for key in ("anyOf", "oneOf", "allOf"):
        for branch in node.get(key, ()):
            yield from _branches(root, branch)


def _first(branches: list[Mapping[str, Any]], keyword: str, default: Any) -> Any:
    """What the first branch says that says anything by this keyword but yes or no."""
    found = (branch[keyword] for branch in branches if keyword in branch)
    return next((value for value in found if not isinstance(value, bool)), default)


def _target(root: Mapping[str, Any], node: Any) -> Mapping[str, Any]:
    while isinstance(node, Mapping) and isinstance(reference := node.get("$ref"), str):
        target: Any = root
        for part in reference.split("/")[1:]:
            target = target.get(part.replace("~1", "/").replace("~0", "~"), {})
        node = target
    return node if isinstance(node, Mapping) else {}
