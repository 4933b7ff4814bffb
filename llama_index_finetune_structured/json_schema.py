"""JSON Schema: walk sub-schemas, resolve references, validate as Pydantic does, remove titles."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import regex
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError, best_match
from jsonschema.protocols import Validator
from jsonschema.validators import extend, validator_for
from pydantic_core import SchemaError as PatternError
from pydantic_core import SchemaValidator, core_schema
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import lookup_recursive_ref

from .example import MOST_LEVELS, is_too_deep
from .panics import recursion_ends

__all__ = [
    "UNIONS",
    "find_error",
    "first_error",
    "follow_references",
    "is_number",
    "map_sub_schemas",
    "pattern_matches",
    "pointer_part",
    "refers_deeper_than",
    "resolve_pointer",
    "schema_title",
    "schema_validator",
    "sub_schemas",
    "without_titles",
]

UNIONS = ("anyOf", "oneOf", "allOf")
"""The keywords whose value is a list of schemas for the same value."""
_TOO_DEEP = f"more than {MOST_LEVELS} objects and lists inside each other"
_PATTERN_S, _SHOWN = 1.0, 80  # chosen: a match takes microseconds; characters of a pattern in an error
_FLOAT_TOLERANCE = 1e-9  # Pydantic's, relative to the value, for multiples of a float
# The keywords that hold schemas, by their form. A property may have any of these names, so a schema is walked by
# position: what stands in "properties" is a schema by a property's name, never a keyword.
_ONE_SCHEMA = {
    "additionalItems", "additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then",
    "unevaluatedItems", "unevaluatedProperties",
}  # fmt: skip
_SCHEMA_LISTS = {*UNIONS, "items", "prefixItems"}
_SCHEMA_MAPS = {"$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties"}


def schema_validator(schema: Mapping[str, Any]) -> Validator:
    """The schema's validator, compiled once and cached; draft 2020-12 unless ``$schema`` names another.

    It judges as Pydantic judges by the class that the schema may come from: multiples of a float within a tolerance,
    patterns in the dialect of Rust, else in Python's, else not at all; formats are not checked. Other documents
    are never loaded. Its ``iter_errors`` may raise jsonschema's own errors: use ``find_error``. Raises ValueError
    where the schema itself is invalid.
    """
    if is_too_deep(schema):
        raise ValueError(f"not a valid JSON schema: {_TOO_DEEP}; describe its inner objects under $defs")
    try:
        return _compiled(json.dumps(schema))
    except (RecursionError, TypeError) as error:
        raise ValueError(f"not a valid JSON schema: {error}") from error


@lru_cache(maxsize=256)
def _compiled(schema_json: str) -> Validator:
    schema = json.loads(schema_json)
    name = schema.get("$schema") if isinstance(schema, dict) else None
    if not isinstance(name, str | None):
        raise ValueError(f"not a valid JSON schema: $schema is {name!r}, expected text")
    draft: Any = validator_for(schema, default=Draft202012Validator)
    try:
        # without formats: the format "regex" of the meta-schema would refuse patterns that Python cannot compile
        draft.check_schema(schema, format_checker=None)
    except SchemaError as error:
        raise ValueError(f"not a valid JSON schema: {error.message}") from error
    validator: Validator = _as_pydantic(draft)(schema, registry=Registry())
    return validator


def find_error(schema: Mapping[str, Any], value: Any) -> ValidationError | None:
    """The most specific violation of ``schema``, or None where ``value`` is valid.

    Raises ValueError where the schema is invalid or cannot be applied to this value: a ``$ref`` that leads nowhere,
    to another document or back to itself, or a value that is nested too deeply.
    """
    validator = schema_validator(schema)
    if is_too_deep(value):
        raise ValueError(f"the value is nested too deeply: {_TOO_DEEP}")
    try:
        with recursion_ends():
            error: ValidationError | None = best_match(validator.iter_errors(value))
            return error
    except Unresolvable as error:
        reference = error.ref or getattr(error, "anchor", "")
        raise ValueError(
            f"the schema cannot be used: its $ref {reference!r} leads to nothing in it; "
            "put the schema that it names under $defs"
        ) from error
    except RecursionError:  # its traceback has a thousand lines
        raise ValueError(
            "the schema cannot be used: a $ref leads back to itself, or the value is nested too deeply"
        ) from None
    except (
        AttributeError,
        TypeError,
        KeyError,
        ValueError,
    ) as error:  # of a $ref to a value that is no schema
        raise ValueError(f"the schema cannot be used: {type(error).__name__}: {error}") from error


def first_error(schema: Mapping[str, Any], value: Any) -> str | None:
    """``find_error`` as ``path: message``, or None where ``value`` is valid. Raises ValueError as it does."""
    error = find_error(schema, value)
    return None if error is None else f"{error.json_path}: {error.message}"


@lru_cache(maxsize=16)
def _as_pydantic(draft: Any) -> Any:
    """The draft's validator with the keywords that jsonschema judges otherwise than Pydantic replaced."""
    own = {
        "multipleOf": _multiple_of,
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _other_properties(draft, "additionalProperties"),
        "unevaluatedProperties": _other_properties(draft, "unevaluatedProperties"),
        "minLength": _length(draft, "minLength"),
        "maxLength": _length(draft, "maxLength"),
    }
    known: Mapping[str, Any] = draft.VALIDATORS
    rules = {name: rule for name, rule in own.items() if name in known}
    return extend(draft, rules)  # type: ignore[no-untyped-call]


_Errors = Iterator[ValidationError]
_Rule = Callable[[Any, Any, Any, Any], _Errors]


def _multiple_of(validator: Any, step: float, instance: Any, _: Any) -> _Errors:
    if validator.is_type(instance, "number") and not _is_multiple(instance, step):
        yield ValidationError(f"{instance!r} is not a multiple of {step}")


def _is_multiple(number: float, step: float) -> bool:
    """Whether ``number`` is a multiple of ``step``; where one is a float, by Pydantic's rule: 0.29 is one of 0.01."""
    if isinstance(number, int) and isinstance(step, int):
        return number % step == 0
    try:
        size = abs(float(number))
        rest = math.fmod(size, step)
    except OverflowError:  # an integer beyond the floats
        return True
    return min(rest, abs(rest - step)) <= size * _FLOAT_TOLERANCE


@lru_cache(maxsize=512)
def _pattern_test(pattern: str) -> Callable[[str], bool] | None:
    """Whether a text matches, by the engine that Pydantic uses for the pattern; None where none compiles it."""
    try:
        rust = SchemaValidator(core_schema.str_schema(pattern=pattern))
        return rust.isinstance_python
    except PatternError:  # Rust has no look-around and no back references: Pydantic leaves those to Python
        pass
    try:
        re.compile(pattern)
        regex.compile(pattern)
    except (re.error, regex.error, OverflowError, RecursionError):
        return None
    return functools.partial(_python_matches, pattern)


@lru_cache(maxsize=256)  # a slow text is validated several times
def _in_time(pattern: str, text: str) -> bool | None:
    """Whether the text matches in Python's dialect; None where that is not known in time."""
    try:
        return regex.search(pattern, text, timeout=_PATTERN_S) is not None
    except TimeoutError:
        return None


def _python_matches(pattern: str, text: str) -> bool:
    if (matches := _in_time(pattern, text)) is None:
        raise ValueError(
            f"the pattern {pattern[:_SHOWN]!r} takes longer than {_PATTERN_S:g} s on a text: write it without "
            "repeats inside repeats, or without (?=...) and back references"
        )
    return matches


def pattern_matches(pattern: str, text: str, *, otherwise: bool) -> bool:
    """Whether ``text`` matches; ``otherwise`` for a pattern that no engine compiles.

    Rust's engine takes linear time. Patterns that only Python's dialect has may take exponential time: each text is
    given a second. Raises ValueError where it took longer.
    """
    test = _pattern_test(pattern)
    return otherwise if test is None else test(text)


def _pattern(validator: Any, pattern: str, instance: Any, _: Any) -> _Errors:
    if validator.is_type(instance, "string") and not pattern_matches(pattern, instance, otherwise=True):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Mapping[str, Any], instance: Any, _: Any) -> _Errors:
    if not validator.is_type(instance, "object"):
        return
    for pattern, schema in patterns.items():
        for name, value in instance.items():
            if pattern_matches(pattern, name, otherwise=False):
                yield from validator.descend(value, schema, path=name, schema_path=pattern)


def _other_properties(draft: Any, keyword: str) -> _Rule:
    """jsonschema's rule, on the object without the properties that others describe.

    For ``unevaluatedProperties``, also schemas inside this one that hold for the same object.
    """
    rule = draft.VALIDATORS.get(keyword)
    beside = ("properties", "patternProperties") if keyword == "additionalProperties" else None

    def other_properties(validator: Any, extra: Any, instance: Any, schema: Any) -> _Errors:
        if validator.is_type(instance, "object"):
            describing = schema if beside is None else {key: schema[key] for key in beside if key in schema}
            described = _described(validator, instance, describing)
            instance = {name: value for name, value in instance.items() if name not in described}
        yield from rule(validator, extra, instance, {}) or ()

    return other_properties


def _described(validator: Any, instance: Mapping[str, Any], schema: Any) -> set[str]:
    """The properties of an object that a schema describes; jsonschema's own function matches patterns without end."""
    if not isinstance(schema, Mapping):
        return set()
    described: set[str] = instance.keys() & schema.get("properties", {}).keys()
    for pattern in schema.get("patternProperties", ()):
        described |= {name for name in instance if pattern_matches(pattern, name, otherwise=True)}
    for keyword in ("additionalProperties", "unevaluatedProperties"):
        if keyword in schema:
            fitting = validator.evolve(schema=schema[keyword]).is_valid
            described |= {name for name, value in instance.items() if fitting(value)}
    parts = [part for union in UNIONS for part in schema.get(union, ())]
    parts += [part for name, part in schema.get("dependentSchemas", {}).items() if name in instance]
    if "if" in schema:
        holds = validator.evolve(schema=schema["if"]).is_valid(instance)
        parts += [schema["if"], schema.get("then", True)] if holds else [schema.get("else", True)]
    for part in parts:
        inner = validator.evolve(schema=part)
        if inner.is_valid(instance):
            described |= _described(inner, instance, part)
    resolver = validator._resolver
    targets = [resolver.lookup(schema[key]) for key in ("$ref", "$dynamicRef") if key in schema]
    targets += [lookup_recursive_ref(resolver)] if "$recursiveRef" in schema else []
    for target in targets:
        inner = validator.evolve(schema=target.contents, _resolver=target.resolver)
        described |= _described(inner, instance, target.contents)
    return described


def _length(draft: Any, keyword: str) -> _Rule:
    """jsonschema's rule, in bytes for Pydantic's ``bytes``; not for Base64, whose text is longer than the bytes."""
    rule = draft.VALIDATORS.get(keyword)

    def length(validator: Any, limit: int, instance: Any, schema: Any) -> _Errors:
        kind = schema.get("format")
        if kind not in ("binary", "base64url"):
            yield from rule(validator, limit, instance, schema) or ()
        elif kind == "binary" and validator.is_type(instance, "string"):
            size = len(instance.encode("utf-8", "surrogatepass"))
            if size < limit if keyword == "minLength" else size > limit:
                yield ValidationError(f"{instance!r} has {size} bytes, and {keyword} is {limit}")

    return length


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


def is_number(value: Any) -> bool:
    """Whether a value is a JSON number: Python's True and False are integers, too."""
    return isinstance(value, int | float) and not isinstance(value, bool)


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


def refers_deeper_than(root: Mapping[str, Any], most: int) -> bool:
    """Whether references lead more than ``most`` deep from the schema's top, where each is followed once.

    Followed in the schema's order and in the reverse one: what walks a schema recursively takes one or the other.
    """
    return any(_refers_deeper_than(root, most, order) for order in (1, -1))


def _refers_deeper_than(root: Mapping[str, Any], most: int, order: int) -> bool:
    seen: set[str] = set()
    waiting: list[tuple[Any, int]] = [(root, 0)]
    while waiting:
        node, depth = waiting.pop()
        if not isinstance(node, Mapping):
            continue
        parts = [
            (part, depth) for keyword, _, part in sub_schemas(node) if keyword not in ("$defs", "definitions")
        ]
        reference = node.get("$ref")
        if isinstance(reference, str) and reference not in seen:
            if depth >= most:
                return True
            seen.add(reference)
            parts.append((resolve_pointer(root, reference), depth + 1))
        waiting += parts[::order]
    return False


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
