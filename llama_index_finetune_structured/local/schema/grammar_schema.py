"""The schema that a grammar is compiled from: stricter than Pydantic's JSON schema where Pydantic checks more.

In Pydantic's JSON schema a Decimal may be any string, and a dict with int keys any object; here patterns restrict
their text.
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

_DIGITS = 20  # digits before the point, and after it, of a decimal without limits; chosen
# Pydantic's constraint -> JSON schema's keyword.
_LIMITS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
    "multiple_of": "multipleOf",
}
# Types of dict keys that are text in JSON -> pattern of that text.
_KEYS = {
    "int": r"^(?:0|-?[1-9][0-9]{0,17})$",
    "float": r"^-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,15})?$",
    "bool": "^(?:true|false)$",
}


def grammar_schema(output_cls: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a class with strings restricted to those that validate.

    Its places, and so its JSON pointers, are those of Pydantic's own schema of the class.
    """
    return output_cls.model_json_schema(schema_generator=_Narrowed)


def with_named_keys(schema: Any, root: Any = None) -> Any:
    """Copy a schema with ``propertyNames`` rewritten as ``patternProperties``, which grammars support."""
    root = schema if root is None else root
    if isinstance(schema, list):
        return [with_named_keys(item, root) for item in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {key: with_named_keys(value, root) for key, value in schema.items()}
    pattern = _key_pattern(copy.get("propertyNames"), root)
    if pattern is not None and isinstance(copy.get("additionalProperties"), dict):
        del copy["propertyNames"]
        copy["patternProperties"] = {pattern: copy["additionalProperties"]}
        copy["additionalProperties"] = False
    return copy


def _key_pattern(names: Any, root: Any) -> str | None:
    """The pattern of keys that a ``propertyNames`` schema allows; None where it has none."""
    if not isinstance(names, dict):
        return None
    names = follow_references(root, names)
    allowed = [names["const"]] if "const" in names else names.get("enum")
    if allowed:
        return f"^(?:{'|'.join(re.escape(str(name)) for name in allowed)})$"
    pattern = names.get("pattern")
    return None if pattern is None else str(pattern)


class _Narrowed(GenerateJsonSchema):
    """Pydantic's schema generator, stricter for decimals, datetimes, URLs and dict keys."""

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        """A number with the class's limits, or a string of such a number where a pattern can hold them.

        A pattern limits digits and sign only; with any limit other than a minimum of 0 the string is left out.
        """
        limits, (whole, places) = _limits(schema), _digits(schema)
        most = 10.0**whole - 1  # the largest value of so many digits
        constraints = dict(limits)
        if "max_digits" in schema:
            constraints |= {"minimum": max(limits.get("minimum", -most), -most)}
            constraints |= {"maximum": min(limits.get("maximum", most), most)}
        if "max_digits" in schema or "decimal_places" in schema:
            constraints.setdefault("multipleOf", 10.0**-places)
        number = {"type": "number", **constraints}
        if any(keyword != "minimum" or limit != 0 for keyword, limit in limits.items()):
            return number
        text = "0" if whole == 0 else f"(?:0|[1-9][0-9]{{0,{whole - 1}}})"
        fraction = f"(?:\\.[0-9]{{1,{places}}})?" if places else ""
        return {
            "anyOf": [number, {"type": "string", "pattern": f"^{'' if limits else '-?'}{text}{fraction}$"}]
        }

    def datetime_schema(self, schema: core_schema.DatetimeSchema) -> JsonSchemaValue:
        """A date-time, with or without a time zone where the class demands that."""
        own = super().datetime_schema(schema)
        zone = schema.get("tz_constraint")
        return {**own, "format": f"{zone}-date-time"} if zone in ("aware", "naive") else own

    def url_schema(self, schema: core_schema.UrlSchema) -> JsonSchemaValue:
        """A URL of the class's schemes."""
        return _with_schemes(super().url_schema(schema), schema, hosts=False)

    def multi_host_url_schema(self, schema: core_schema.MultiHostUrlSchema) -> JsonSchemaValue:
        """A URL with several hosts, such as a Postgres address, of the class's schemes."""
        return _with_schemes(super().multi_host_url_schema(schema), schema, hosts=True)

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        """A free-form object whose keys are the text of the class's key type."""
        own = super().dict_schema(schema)
        keys = _KEYS.get(schema["keys_schema"]["type"]) if "keys_schema" in schema else None
        return {**own, "propertyNames": {"pattern": keys}} if keys else own


def _with_schemes(
    own: JsonSchemaValue, schema: core_schema.UrlSchema | core_schema.MultiHostUrlSchema, *, hosts: bool
) -> JsonSchemaValue:
    """The schema with a pattern of the allowed schemes in place of its format; unchanged without such."""
    schemes = schema.get("allowed_schemes")
    if not schemes:
        return own
    return {keyword: own[keyword] for keyword in own if keyword != "format"} | {
        "pattern": url_pattern(schemes, hosts=hosts)
    }


def _limits(schema: core_schema.DecimalSchema) -> dict[str, float]:
    """The limits of a decimal, by JSON schema keyword."""
    return {keyword: float(schema[key]) for key, keyword in _LIMITS.items() if schema.get(key) is not None}  # type: ignore[literal-required]


def _digits(schema: core_schema.DecimalSchema) -> tuple[int, int]:
    """The most digits of a decimal before and after the point."""
    most, places = schema.get("max_digits"), schema.get("decimal_places")
    if places is None:
        places = _DIGITS if most is None else min(2, most - 1)
    return (_DIGITS if most is None else max(0, most - places)), places
