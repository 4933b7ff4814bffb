"""The tools and calls of a turn's schema, for chat templates that have a form of their own for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...json_schema import map_sub_schemas, pointer_part, without_titles
from .tool_turns import CALL

__all__ = ["Call", "call_schemas", "turn_of", "turn_tools"]

Call = tuple[str, dict[str, Any]]
"""A tool's name and its arguments."""


def turn_tools(schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tools of a schema of ``turn_schema`` in OpenAI's chat form, in the order of their names."""
    return [
        {"type": "function", "function": _function(schema["$defs"], name, number, body)}
        for number, call in enumerate(schema["$defs"][CALL]["anyOf"])
        for name, body in call["properties"].items()
    ]


def call_schemas(schema: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The schema of the arguments of each tool that a turn's schema allows, in the order of names.

    ``schema``: of ``turn_schema`` or ``chosen_schema``. Each has all definitions, so that references in it hold.
    """
    calls = [call["properties"] for call in schema["$defs"][CALL]["anyOf"] if call]
    return {name: {**body, "$defs": schema["$defs"]} for call in calls for name, body in call.items()}


def turn_of(text: str) -> tuple[str, list[Call]]:
    """The text and the calls of a turn's JSON text. Raises ValueError for another text."""
    parts = json.loads(text)
    if not isinstance(parts, list):
        raise ValueError(f"expected a list of texts and calls, found {text!r}")
    said = "".join(part for part in parts if isinstance(part, str))
    return said, [call for part in parts if isinstance(part, dict) for call in part.items()]


def _function(
    definitions: Mapping[str, Any], name: str, number: int, body: Mapping[str, Any]
) -> dict[str, Any]:
    root = f"#/$defs/{CALL}/anyOf/{number}/properties/{pointer_part(name)}"
    start = f"#/$defs/{pointer_part(name)}_"
    used: dict[str, Any] = {}

    def copied(_: str, node: Any) -> Any:
        if not isinstance(node, Mapping):
            return node
        copy = map_sub_schemas(node, copied)
        reference = copy.get("$ref")
        if reference == root:
            return {**copy, "$ref": "#"}
        if not isinstance(reference, str):
            return copy
        part = reference.removeprefix(start)
        if part not in used:
            used[part] = None  # a definition may refer to itself
            used[part] = copied("", definitions[f"{name}_{_unescaped(part)}"])
        return {**copy, "$ref": f"#/$defs/{part}"}

    parameters = copied("", without_titles(body))
    description = parameters.pop("description", "")
    if parameters.get("additionalProperties") is False:  # as tools are usually given
        del parameters["additionalProperties"]
    if used:
        parameters["$defs"] = {_unescaped(part): without_titles(found) for part, found in used.items()}
    return {"name": name, "description": description, "parameters": parameters}


def _unescaped(part: str) -> str:
    return part.replace("~1", "/").replace("~0", "~")
