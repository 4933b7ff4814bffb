"""Structured answers in the one spelling that training teaches and the grammar enforces."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import DatasetError
from ..example import Example

__all__ = ["answer_text"]


def answer_text(example: Example) -> str:
    """The text an example is trained to answer: JSON without spaces, keys in the schema's order; or plain text.

    Raises DatasetError where an answer with a schema is no JSON.
    """
    if example.answer_schema is None:
        return example.answer_text()
    try:
        answer = example.answer_object()
    except ValueError as error:
        raise DatasetError(
            f"example {example.id[:12]}: it carries a schema and its answer is no JSON ({error}): mend or drop it"
        ) from error
    ordered = _in_schema_order(example.answer_schema, example.answer_schema, answer)
    return json.dumps(ordered, separators=(",", ":"), ensure_ascii=False)


def _in_schema_order(root: Mapping[str, Any], node: Any, value: Any) -> Any:
    node = _target(root, node)
    if isinstance(value, list):
        return [_in_schema_order(root, node.get("items"), item) for item in value]
    if not isinstance(value, dict):
        return value
    properties = _properties(root, node, value)
    names = [name for name in properties if name in value] + [
        name for name in value if name not in properties
    ]
    rest = node.get("additionalProperties")
    return {name: _in_schema_order(root, properties.get(name, rest), value[name]) for name in names}


def _properties(
    root: Mapping[str, Any], node: Mapping[str, Any], value: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The properties of a node, or of that branch of a union which knows most of the value's keys."""
    branches = [_target(root, b) for key in ("anyOf", "oneOf", "allOf") for b in node.get(key, ())]
    known = [branch.get("properties", {}) for branch in (node, *branches)]
    return max(known, key=lambda properties: len(value.keys() & properties.keys()))


def _target(root: Mapping[str, Any], node: Any) -> Mapping[str, Any]:
    while isinstance(node, Mapping) and isinstance(reference := node.get("$ref"), str):
        target: Any = root
        for part in reference.split("/")[1:]:
            target = target.get(part.replace("~1", "/").replace("~0", "~"), {})
        node = target
    return node if isinstance(node, Mapping) else {}
