"""The branches of a JSON schema: those of its unions, without references."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...json_schema import resolve_pointer

__all__ = ["branches"]

_MOST_REFERENCES = 16  # chosen: references to each other end there


def branches(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int = 0) -> list[Mapping[str, Any]]:
    """The schema alone, or those of its union. ``root``: what its references point into."""
    if depth > _MOST_REFERENCES:
        return []
    if isinstance(reference := schema.get("$ref"), str):
        inner = resolve_pointer(root, reference)
        return branches(inner, root, depth + 1) if isinstance(inner, Mapping) else []
    union = schema.get("anyOf") or schema.get("oneOf")
    if isinstance(union, list):
        return [found for choice in union for found in branches(choice, root, depth + 1)]
    return [schema]
