"""The schema that a grammar is compiled from: stricter than Pydantic's JSON schema where Pydantic checks more.

In Pydantic's JSON schema a Decimal may be any string, and a dict with int keys any object; here patterns restrict
their text.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from pydantic import BaseModel, ByteSize
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from ...json_schema import follow_references, map_sub_schemas
from .decimal_patterns import DecimalLimit, decimal_range_pattern, digits_pattern
from .string_formats import ANY_DECIMAL, KEY_PATTERNS, expressible, translate_string, url_pattern

__all__ = ["grammar_schema", "with_named_keys"]

_LARGEST_MULTIPLE = 1e18
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

_BYTE_SIZE = r"^[0-9]{1,15}(?:\.[0-9]{1,3})? ?(?:[kKmMgGtTpPeE]i?)?[bB]$"


def grammar_schema(output_cls: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a class with strings restricted to those that validate.

    Its places, and so its JSON pointers, are those of Pydantic's own schema of the class.
    """
    return output_cls.model_json_schema(schema_generator=_Narrowed)


def with_named_keys(schema: Any, root: Any = None) -> Any:
    """Copy a schema with ``propertyNames`` rewritten as ``patternProperties``, which grammars support."""
    root = schema if root is None else root
    if not isinstance(schema, dict):
        return schema
    copy = map_sub_schemas(schema, lambda _, child: with_named_keys(child, root))
    pattern = _key_pattern(copy.get("propertyNames"), root)
    rest = copy.get("additionalProperties", True)
    if pattern is not None and expressible(pattern) and (rest is True or isinstance(rest, dict)):
        del copy["propertyNames"]
        copy["patternProperties"] = copy.get("patternProperties", {}) | {pattern: rest}
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
    if branches := names.get("anyOf"):  # keys are text, so numbers are left out
        found = [_key_pattern(branch, root) for branch in branches if branch.get("type") == "string"]
        return found[0] if len(found) == 1 else None
    names = dict(names)
    translate_string(names)
    if "pattern" not in names and names.get("format") in KEY_PATTERNS:
        return KEY_PATTERNS[names["format"]]
    if "pattern" not in names and ("minLength" in names or "maxLength" in names):
        return f"^[\\s\\S]{{{names.get('minLength', 0)},{names.get('maxLength', '')}}}$"
    return str(names["pattern"]) if "pattern" in names else None


class _Narrowed(GenerateJsonSchema):
    """Pydantic's schema generator, stricter for decimals, datetimes, URLs and dict keys."""

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        """A number with the class's limits, or, as Pydantic writes it, a string of such a number.

        The string is no multiple of anything but a power of ten.
        """
        limits, (whole, places) = _limits(schema), _digits(schema)
        most = 10.0**whole - 1  # the largest value of so many digits
        constraints = dict(limits)
        if "max_digits" in schema:
            constraints |= {"minimum": max(limits.get("minimum", -most), -most)}
            constraints |= {"maximum": min(limits.get("maximum", most), most)}
        if "max_digits" in schema or "decimal_places" in schema:
            constraints.setdefault("multipleOf", 10.0**-places)
        if (
            "multipleOf" in constraints
        ):  # of more digits than Python's decimals compute with, none is a multiple
            constraints.setdefault("minimum", -_LARGEST_MULTIPLE)
            constraints.setdefault("maximum", _LARGEST_MULTIPLE)
        number = {"type": "number", **constraints}
        patterns = _text_patterns(schema)
        if not patterns:
            return number
        text: JsonSchemaValue = {"type": "string", "pattern": patterns[0]}
        if len(patterns) > 1:
            text["allOf"] = [{"pattern": pattern} for pattern in patterns[1:]]
        return {"anyOf": [number, text]}

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        """A union whose branches require the field that tells them apart, which Pydantic demands of all input.

        Where a function tells them apart, they require every field that can have one value only.
        """
        own = super().tagged_union_schema(schema)
        tag = own.get("discriminator", {}).get("propertyName")
        branches = [self._with_tags(branch, tag) for branch in own.get("oneOf", ())]
        return {**own, "oneOf": branches} if branches else own

    def _with_tags(self, branch: JsonSchemaValue, tag: str | None) -> JsonSchemaValue:
        if tag is not None:
            tags = [tag]
        else:
            target = self.resolve_ref_schema(branch)
            tags = [name for name, child in target.get("properties", {}).items() if "const" in child]
        required = list(dict.fromkeys([*branch.get("required", ()), *tags]))
        return {**branch, "required": required} if required else branch

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
        key_schema: Any = schema.get("keys_schema", {"type": "any"})
        keys = _KEYS.get(key_schema["type"])
        if key_schema["type"] == "decimal":
            keys = next(iter(_text_patterns(key_schema)), None)
        if "patternProperties" in own:  # Pydantic's form of keys with a pattern, which refuses all others
            return {"additionalProperties": False, **own}
        return {**own, "propertyNames": {"pattern": keys}} if keys else own

    def str_schema(self, schema: core_schema.StringSchema) -> JsonSchemaValue:
        """A string; the text of a ByteSize has a unit that the class knows."""
        own = super().str_schema(schema)
        return own | {"pattern": _BYTE_SIZE} if own.get("pattern") == ByteSize.byte_string_pattern else own


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


def _text_patterns(schema: core_schema.DecimalSchema) -> list[str]:
    """The patterns that the text of a decimal has to match; none where no text fits the limits."""
    most, places = schema.get("max_digits"), schema.get("decimal_places")
    low, high = _limit(schema, "ge", "gt", max), _limit(schema, "le", "lt", min)
    whole = _DIGITS if most is None else most if places is None else max(0, most - places)
    if places is None:
        places = _DIGITS if most is None else most
    step = schema.get("multiple_of")
    if step is not None:
        places = min(places, max(0, -int(Decimal(str(step)).normalize().as_tuple().exponent)))
    if (
        low is None
        and high is None
        and most is None
        and schema.get("decimal_places") is None
        and step is None
    ):
        return [ANY_DECIMAL]
    pattern = decimal_range_pattern(low, high, whole=whole, places=places)
    if pattern is None:
        return []
    if most is not None and schema.get("decimal_places") is None:
        return [pattern, digits_pattern(most)]
    return [pattern]


def _limit(
    schema: core_schema.DecimalSchema, included: str, excluded: str, tightest: Any
) -> DecimalLimit | None:
    """The tighter of the limits that may and may not be reached."""
    limits = [
        DecimalLimit(Decimal(str(schema[key])), included=key == included)  # type: ignore[literal-required]
        for key in (excluded, included)
        if schema.get(key) is not None
    ]
    return tightest(limits, key=lambda limit: limit.value) if limits else None
