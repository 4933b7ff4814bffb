"""JSON Schema: walk sub-schemas, resolve references, compile validators, remove titles."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
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
    "map_sub_schemas",
    "pointer_part",
    "resolve_pointer",
    "schema_title",
    "schema_validator",
    "sub_schemas",
    "without_titles",
]

UNIONS = ("anyOf", "oneOf", "allOf")
"""The keywords whose value is a list of schemas for the same value."""
# The keywords that hold schemas, by their form. A property may have any of these names, so a schema is walked by
# position: what stands in "properties" is a schema by a property's name, never a keyword.
_ONE_SCHEMA = frozenset(
    (
        *(
            "additionalItems",
            "additionalProperties",
            "contains",
            "else",
            "if",
            "items",
            "not",
            "propertyNames",
        ),
        *("then", "unevaluatedItems", "unevaluatedProperties"),
    )
)
_SCHEMA_LISTS = frozenset((*UNIONS, "items", "prefixItems"))
_SCHEMA_MAPS = frozenset(
    ("$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties")
)


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


def sub_schemas(schema: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield keyword, relative JSON pointer (``properties/name``) and value of every direct sub-schema.

    Booleans, which are schemas too, are among them; in ``dependencies`` lists of names are not.
    """
    for keyword, value in schema.items():
        if keyword in _SCHEMA_LISTS and isinstance(value, list):
            for n, item in enumerate(value):
                yield keyword, f"{keyword}/{n}", item
        elif keyword in _SCHEMA_MAPS and isinstance(value, Mapping):
            for name, item in value.items():
                if isinstance(item, Mapping | bool):
                    yield keyword, f"{keyword}/{pointer_part(name)}", item
        elif keyword in _ONE_SCHEMA and isinstance(value, Mapping | bool):
            yield keyword, keyword, value


def map_sub_schemas(schema: Mapping[str, Any], change: Callable[[str, Any], Any]) -> dict[str, Any]:
    """Copy a schema with every direct sub-schema replaced by ``change(keyword, sub_schema)``."""
    copy = dict(schema)
    for keyword, value in schema.items():
        if keyword in _SCHEMA_LISTS and isinstance(value, list):
            copy[keyword] = [change(keyword, item) for item in value]
        elif keyword in _SCHEMA_MAPS and isinstance(value, Mapping):
            copy[keyword] = {
                name: change(keyword, item) if isinstance(item, Mapping | bool) else item
                for name, item in value.items()
            }
        elif keyword in _ONE_SCHEMA and isinstance(value, Mapping | bool):
            copy[keyword] = change(keyword, value)
    return copy


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


def schema_title(schema: Mapping[str, Any] | None) -> str | None:
    """The schema's title, or None where it has none that is a string."""
    title = schema.get("title") if schema else None
    return title if isinstance(title, str) else None


def without_titles(schema: Any) -> Any:
    """The schema without Pydantic's generated titles, which cost tokens and carry no information."""
    if not isinstance(schema, Mapping):
        return schema
    kept = {name: value for name, value in schema.items() if name != "title" or not isinstance(value, str)}
    return map_sub_schemas(kept, lambda _, child: without_titles(child))
