"""Differences between the drafts of JSON schema that decide which answers are valid."""

from __future__ import annotations

import re
from typing import Any

from ...json_schema import map_sub_schemas

__all__ = ["by_reference_alone"]

_OF_OBJECTS = ("type", "properties", "required", "additionalProperties", "patternProperties")
_OLD = re.compile(r"json-schema\.org/draft-0[3-7]/")


def by_reference_alone(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without what stands beside a ``$ref``, if its draft (up to 7) ignores that; else as it is.

    Beside a reference at the root stay the definitions that references point to.
    """
    if not _OLD.search(str(schema.get("$schema", ""))):
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
