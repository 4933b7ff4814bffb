"""Differences between the drafts of JSON schema that decide which answers are valid."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...json_schema import map_sub_schemas

__all__ = ["by_reference_alone", "ignores_beside_references"]

_OF_OBJECTS = ("type", "properties", "required", "additionalProperties", "patternProperties")
_OLD = re.compile(r"json-schema\.org/draft-0[3-7]/")


def ignores_beside_references(schema: Mapping[str, Any]) -> bool:
    """Whether the schema's draft (up to 7) ignores what stands beside a ``$ref``."""
    return bool(_OLD.search(str(schema.get("$schema", ""))))


def by_reference_alone(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without what stands beside a ``$ref``, if its draft ignores that; else as it is.

    Beside a reference at the root stay the definitions that references point to.
    """
    if not ignores_beside_references(schema):
        return schema
    alone = map_sub_schemas(schema, lambda _, child: _alone(child))
    if not isinstance(schema.get("$ref"), str):
        return alone
    return {key: value for key, value in alone.items() if key not in _OF_OBJECTS}


def _alone(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    if isinstance(node.get("$ref"), str):
        return {"$ref": node["$ref"]}
    return map_sub_schemas(node, lambda _, child: _alone(child))
