"""Differences between the drafts of JSON schema that decide which answers are valid."""

from __future__ import annotations

import re
from typing import Any

from ...json_schema import map_sub_schemas

__all__ = ["by_reference_alone"]

_OLD = re.compile(r"json-schema\.org/draft-0[3-7]/")


def by_reference_alone(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without what stands beside a ``$ref``, if its draft (up to 7) ignores that; else as it is."""
    return _alone(schema, root=True) if _OLD.search(str(schema.get("$schema", ""))) else schema


def _alone(node: Any, *, root: bool = False) -> Any:
    if not isinstance(node, dict):
        return node
    if isinstance(node.get("$ref"), str) and not root:
        return {"$ref": node["$ref"]}
    return map_sub_schemas(node, lambda _, child: _alone(child))
