"""Schemas in the strict form in which OpenAI's SDK sends them, told from the schema of training that they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ..json_schema import follow_references, map_sub_schemas, without_titles

__all__ = ["all_required", "trained_schema"]


def trained_schema(schema: Mapping[str, Any], trained: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The schema of training that a request's schema is, in its own or in the SDK's strict form; else the schema.

    ``trained``: without titles. An adapter answers the schema that it was trained on: with another spelling of it, it
    would get other prompts and no bounds.
    """
    bare = without_titles(schema)
    for one in () if bare in trained else trained:
        with suppress(
            RecursionError
        ):  # a reference beside keywords to what holds it: the SDK cannot send it either
            if _strict(one, one) == bare:
                return one
    return schema


def all_required(schema: Any) -> Any:
    """A schema whose objects have all keys, each place where it was: bounds of answers are found by places."""
    if not isinstance(schema, Mapping):
        return schema
    closed: dict[str, Any] = map_sub_schemas(schema, lambda _, child: all_required(child))
    if isinstance(closed.get("properties"), Mapping):
        closed["required"] = list(closed["properties"])
    return closed


def _strict(schema: Any, root: Mapping[str, Any]) -> Any:
    """A sub-schema of ``root`` as ``openai.lib._pydantic`` sends it: closed objects whose keys are all required."""
    if not isinstance(schema, Mapping):
        return schema
    if schema.get("default", ...) is None:
        schema = {keyword: value for keyword, value in schema.items() if keyword != "default"}
    if "$ref" in schema and len(schema) > 1:  # keywords beside a reference are not allowed there
        inlined = {**follow_references(root, schema), **schema}
        del inlined["$ref"]
        return _strict(inlined, root)
    strict: dict[str, Any] = map_sub_schemas(schema, lambda _, child: _strict(child, root))
    if strict.get("type") == "object":
        strict.setdefault("additionalProperties", False)
    if isinstance(strict.get("properties"), Mapping):
        strict["required"] = list(strict["properties"])
    if isinstance(strict.get("allOf"), list) and len(strict["allOf"]) == 1:
        strict.update(strict.pop("allOf")[0])
    return strict
