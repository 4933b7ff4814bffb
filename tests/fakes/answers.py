"""Answers of the fake models: the smallest value that fits a JSON schema."""

from __future__ import annotations

import json
import re
from typing import Any


def instance_of(schema: dict[str, Any], root: dict[str, Any] | None = None) -> Any:
    root = root if root is not None else schema
    if "$ref" in schema:
        target: Any = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        return instance_of(target, root)
    if "enum" in schema:
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    if "anyOf" in schema:
        return instance_of(schema["anyOf"][0], root)
    kind = schema.get("type")
    if kind == "object":
        return {name: instance_of(part, root) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        return [instance_of(schema.get("items", {"type": "string"}), root)]
    return {"integer": 1, "number": 1.5, "boolean": True, "null": None}.get(str(kind), "text")


def schema_in(text: str) -> dict[str, Any] | None:
    """The JSON schema in a prompt, its braces doubled or not; None where there is none."""
    for candidate in (text, text.replace("{{", "{").replace("}}", "}")):
        for found in re.finditer(r"\{", candidate):
            try:
                value, _ = json.JSONDecoder().raw_decode(candidate[found.start() :])
            except ValueError:
                continue
            if isinstance(value, dict) and "properties" in value:
                return value
    return None
