"""JSON Schema: resolve references, compile validators, remove titles, order keys as the schema does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for

__all__ = [
    "UNIONS",
    "first_error",
    "follow_references",
    "in_schema_order",
    "pointer_part",
    "resolve_pointer",
    "schema_title",
    "schema_validator",
    "without_titles",
]

UNIONS = ("anyOf", "oneOf", "allOf")
"""The keywords whose value is a list of schemas for the same value."""
_MAX_UNION_DEPTH = 12  # chosen: deeper than unions are nested in practice; ends the walk of a recursive union


def schema_validator(schema: Mapping[str, Any]) -> Validator:
    """The schema's validator, compiled once and cached; draft 2020-12 unless ``$schema`` names another.

    Raises ValueError where the schema itself is invalid.
    """
    return _compiled(json.dumps(schema))


@lru_cache(maxsize=256)
def _compiled(schema_json: str) -> Validator:
    schema = json.loads(schema_json)
    draft = validator_for(schema, default=Draft202012Validator)
    try:
        draft.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"not a valid JSON schema: {error.message}") from error
    return draft(schema)


def first_error(schema: Mapping[str, Any], value: Any) -> str | None:
    """The most specific violation of ``schema`` as ``path: message``, or None where ``value`` is valid.

    Raises ValueError where the schema itself is invalid.
    """
    error = best_match(schema_validator(schema).iter_errors(value))
    return None if error is None else f"{error.json_path}: {error.message}"


def resolve_pointer(root: Any, pointer: str) -> Any:
    """The value in ``root`` at a JSON pointer (RFC 6901, ``#/properties/name``), or ``{}`` where there is none."""
    path = pointer.removeprefix("#")
    if path and not path.startswith("/"):
        return {}  # another document or an anchor, which is no pointer
    node = root
    for part in path.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list):
            node = node[int(name)] if name.isdecimal() and int(name) < len(node) else {}
        else:
            node = node.get(name, {}) if isinstance(node, Mapping) else {}
    return node


def pointer_part(name: str) -> str:
    """Escape a property name for use in a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def follow_references(root: Any, node: Any) -> Mapping[str, Any]:
    """Follow a chain of ``$ref`` to its schema; ``{}`` for a circular chain or a missing target."""
    seen: set[str] = set()
    while isinstance(node, Mapping) and isinstance(reference := node.get("$ref"), str):
        if reference in seen:
            return {}
        seen.add(reference)
        node = resolve_pointer(root, reference)
    return node if isinstance(node, Mapping) else {}


def _branches(root: Any, node: Any, *, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """Yield a schema with its references followed, then the branches of its unions, recursively."""
    node = follow_references(root, node)
    yield node
    if depth < _MAX_UNION_DEPTH:
        for key in UNIONS:
            for branch in node.get(key, ()):
                yield from _branches(root, branch, depth=depth + 1)


def in_schema_order(schema: Mapping[str, Any], value: Any) -> Any:
    """``value`` with the keys of every object in the order of the schema's properties, other keys last."""
    return _in_order(schema, schema, value)


def _in_order(root: Mapping[str, Any], node: Any, value: Any) -> Any:
    branches = list(_branches(root, node))
    if isinstance(value, list):
        prefix, rest = _first(branches, "prefixItems", ()), _first(branches, "items", None)
        nodes = [*prefix[: len(value)], *[rest] * (len(value) - len(prefix))]
        return [_in_order(root, node, item) for node, item in zip(nodes, value, strict=True)]
    if not isinstance(value, dict):
        return value
    # In a union, order by the branch whose properties cover most of the value's keys.
    candidates = [branch.get("properties", {}) for branch in branches]
    properties = max(candidates, key=lambda properties: len(value.keys() & properties.keys()))
    names = [name for name in properties if name in value]
    names += [name for name in value if name not in properties]
    rest = _first(branches, "additionalProperties", None)
    return {name: _in_order(root, properties.get(name, rest), value[name]) for name in names}


def _first(branches: list[Mapping[str, Any]], keyword: str, default: Any) -> Any:
    """The first value of ``keyword`` in ``branches`` that is not a boolean, else ``default``."""
    values = (branch[keyword] for branch in branches if keyword in branch)
    return next((value for value in values if not isinstance(value, bool)), default)


def schema_title(schema: Mapping[str, Any] | None) -> str | None:
    """The schema's title, or None where it has none that is a string."""
    title = schema.get("title") if schema else None
    return title if isinstance(title, str) else None


def without_titles(schema: Any) -> Any:
    """The schema without Pydantic's generated titles, which cost tokens and carry no information."""
    if isinstance(schema, Mapping):
        return {
            key: without_titles(value)
            for key, value in schema.items()
            if not (key == "title" and isinstance(value, str))
        }
    return [without_titles(item) for item in schema] if isinstance(schema, list) else schema
