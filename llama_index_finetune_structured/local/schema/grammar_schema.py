"""The schema that a grammar is made of: it says more than the one in the prompt, where Pydantic knows more.

In JSON schema a Decimal may be any string and a dict of int any object; here their text is spelled out.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from ...json_schema import follow_references
from .string_formats import url_pattern

__all__ = ["grammar_schema", "with_named_keys"]

_DIGITS = 20
_LIMITS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
    "multiple_of": "multipleOf",
}
_KEYS = {
    "int": r"^(?:0|-?[1-9][0-9]{0,17})$",
    "float": r"^-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,15})?$",
    "bool": "^(?:true|false)$",
}


def grammar_schema(output_cls: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a class, place by place as Pydantic's own, with texts narrowed to those that validate."""
    return output_cls.model_json_schema(schema_generator=_Narrowed)


def with_named_keys(schema: Any, root: Any = None) -> Any:
    """A schema in which the keys that ``propertyNames`` asks for are patterns: grammars know no other way."""
    root = schema if root is None else root
    if isinstance(schema, list):
        return [with_named_keys(item, root) for item in schema]
    if not isinstance(schema, dict):
        return schema
    said = {key: with_named_keys(value, root) for key, value in schema.items()}
    pattern = _key_pattern(said.get("propertyNames"), root)
    if pattern is not None and isinstance(said.get("additionalProperties"), dict):
        del said["propertyNames"]
        said["patternProperties"] = {pattern: said["additionalProperties"]}
        said["additionalProperties"] = False
    return said


def _key_pattern(names: Any, root: Any) -> str | None:
    if not isinstance(names, dict):
        return None
    names = follow_references(root, names)
    allowed = [names["const"]] if "const" in names else names.get("enum")
    if allowed:
        return f"^(?:{'|'.join(re.escape(str(name)) for name in allowed)})$"
    pattern = names.get("pattern")
    return None if pattern is None else str(pattern)


class _Narrowed(GenerateJsonSchema):
    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        limits, (whole, places) = _limits(schema), _digits(schema)
        most = 10.0**whole - 1
        held = dict(limits)
        if "max_digits" in schema:
            held |= {"minimum": max(limits.get("minimum", -most), -most)}
            held |= {"maximum": min(limits.get("maximum", most), most)}
        if "max_digits" in schema or "decimal_places" in schema:
            held.setdefault("multipleOf", 10.0**-places)
        number = {"type": "number", **held}
        if any(word != "minimum" or limit != 0 for word, limit in limits.items()):
            return number  # no pattern holds these limits
        text = "0" if whole == 0 else f"(?:0|[1-9][0-9]{{0,{whole - 1}}})"
        fraction = f"(?:\\.[0-9]{{1,{places}}})?" if places else ""
        return {
            "anyOf": [number, {"type": "string", "pattern": f"^{'' if limits else '-?'}{text}{fraction}$"}]
        }

    def datetime_schema(self, schema: core_schema.DatetimeSchema) -> JsonSchemaValue:
        said = super().datetime_schema(schema)
        zone = schema.get("tz_constraint")
        return {**said, "format": f"{zone}-date-time"} if zone in ("aware", "naive") else said

    def url_schema(self, schema: core_schema.UrlSchema) -> JsonSchemaValue:
        return _with_schemes(super().url_schema(schema), schema, hosts=False)

    def multi_host_url_schema(self, schema: core_schema.MultiHostUrlSchema) -> JsonSchemaValue:
        return _with_schemes(super().multi_host_url_schema(schema), schema, hosts=True)

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        said = super().dict_schema(schema)
        keys = _KEYS.get(schema["keys_schema"]["type"]) if "keys_schema" in schema else None
        return {**said, "propertyNames": {"pattern": keys}} if keys else said


def _with_schemes(
    said: JsonSchemaValue, schema: core_schema.UrlSchema | core_schema.MultiHostUrlSchema, *, hosts: bool
) -> JsonSchemaValue:
    schemes = schema.get("allowed_schemes")
    if not schemes:
        return said
    return {word: said[word] for word in said if word != "format"} | {
        "pattern": url_pattern(schemes, hosts=hosts)
    }


def _limits(schema: core_schema.DecimalSchema) -> dict[str, float]:
    """The limits of a decimal in JSON schema's words."""
    return {word: float(schema[key]) for key, word in _LIMITS.items() if schema.get(key) is not None}  # type: ignore[literal-required]


def _digits(schema: core_schema.DecimalSchema) -> tuple[int, int]:
    """How many digits a decimal may have before and after its point."""
    most, places = schema.get("max_digits"), schema.get("decimal_places")
    if places is None:
        places = _DIGITS if most is None else min(2, most - 1)
    return (_DIGITS if most is None else max(0, most - places)), places
