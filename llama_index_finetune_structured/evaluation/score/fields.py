"""Flattens a JSON schema into the fields that are scored.

An object's properties are fields of their own (``author.name``). A list is one field (``citations``) whose items
are matched one to one; the properties of its items are reported too (``citations[].year``). What a schema leaves
open (unions of objects, free dictionaries) is one field, compared as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ...example import MOST_LEVELS
from ...json_schema import UNIONS, resolve_pointer
from ...written_values.kinds import written_kind
from .rules import FieldRule

__all__ = ["Field", "fields_of", "inferred_schema"]

FieldKind = Literal["value", "text", "list"]
_NUMBERS = {"number", "integer"}


@dataclass(frozen=True)
class Field:
    """One field of a schema.

    ``path``: its name in rules and reports; ``keys``: the object keys that lead to it, from the answer or, in a
    list's item, from the item. ``items``: of a list, the fields of an item.
    """

    path: str
    keys: tuple[str, ...]
    kind: FieldKind
    rule: FieldRule = field(default_factory=FieldRule)
    items: tuple[Field, ...] = ()

    def value_in(self, answer: Any) -> Any:
        """The field's value; None where it is absent, null, empty or blank text, an empty list or object."""
        for key in self.keys:
            answer = answer.get(key) if isinstance(answer, dict) else None
        return None if answer is None or answer == [] or answer == {} or _blank(answer) else answer


def _blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def fields_of(schema: Mapping[str, Any], rules: Mapping[str, FieldRule]) -> tuple[Field, ...]:
    """Flatten a JSON schema into fields; ``rules`` (by path) take precedence over what the types suggest."""
    return tuple(_Flattener(schema, rules).fields(schema, "", (), ()))


@dataclass(frozen=True)
class _Flattener:
    """``above``, in all methods: the ``$ref``s that led here, so that a recursive schema ends."""

    root: Mapping[str, Any]
    rules: Mapping[str, FieldRule]

    def fields(
        self, schema: Mapping[str, Any], path: str, keys: tuple[str, ...], above: tuple[str, ...]
    ) -> list[Field]:
        """The fields at ``path``, which ends in "[]." for the item of a list."""
        schema, above = self._resolve(schema, above)
        properties = schema.get("properties")
        has_rule = path.removesuffix(".") in self.rules
        if not isinstance(properties, dict) or not properties or has_rule:
            leaf = self._leaf(schema, path, keys, above)
            return [] if leaf.rule.compare == "ignore" else [leaf]
        fields: list[Field] = []
        for name, inner in properties.items():
            below = f"{path}.{name}" if path and not path.endswith("[].") else f"{path}{name}"
            fields += self.fields(inner if isinstance(inner, dict) else {}, below, (*keys, name), above)
        return fields

    def _leaf(
        self, schema: Mapping[str, Any], path: str, keys: tuple[str, ...], above: tuple[str, ...]
    ) -> Field:
        """One field for all of ``schema``: a list, or a value compared by its rule."""
        name = path.removesuffix(".") or "answer"
        rule = self.rules.get(path) or self.rules.get(name)
        item_schema = schema.get("items")
        if schema.get("type") == "array" and isinstance(item_schema, dict) and rule is None:
            items = self.fields(item_schema, f"{path}[].", (), above)
            return Field(path or "answer", keys, "list", items=tuple(items))
        rule = rule or FieldRule(_suggested(schema))
        return Field(name, keys, "text" if _graded(rule) else "value", rule)

    def _resolve(
        self, schema: Mapping[str, Any], above: tuple[str, ...]
    ) -> tuple[Mapping[str, Any], tuple[str, ...]]:
        """Follow $ref and single-choice unions (Optional); a recursive or very deep one becomes the open schema."""
        while True:
            reference = schema.get("$ref")
            if isinstance(reference, str):
                if reference in above or len(above) >= MOST_LEVELS:
                    return {}, above
                inner = resolve_pointer(self.root, reference)
                schema, above = inner if isinstance(inner, dict) else {}, (*above, reference)
                continue
            choices = [c for c in _choices(schema) if c.get("type") != "null"]
            if len(choices) != 1:
                return schema, above
            schema = choices[0]


def _choices(schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The schemas of a union (anyOf, oneOf); empty where it is none."""
    for key in UNIONS:
        if isinstance(schema.get(key), list) and "properties" not in schema:
            return [choice for choice in schema[key] if isinstance(choice, dict)]
    return []


_WRITTEN: dict[str, Literal["exact", "date"]] = {
    "date": "date",
    "datetime": "date",
    "time": "exact",
    "currency": "exact",
}


def _suggested(schema: Mapping[str, Any]) -> Literal["exact", "number", "date"]:
    """The comparison that fits the schema's type."""
    if (kind := written_kind(schema)) is not None:
        return _WRITTEN.get(kind.name, "number")
    kinds = _types(schema)
    if schema.get("format") in ("date", "date-time"):
        return "date"
    for choice in _choices(schema):
        kinds |= _types(choice)
    is_decimal = "number" in kinds and kinds <= _NUMBERS | {
        "string",
        "null",
    }  # Pydantic's schema of a Decimal
    return "number" if is_decimal or (kinds and kinds <= _NUMBERS | {"null"}) else "exact"


def _types(schema: Mapping[str, Any]) -> set[str]:
    types = schema.get("type")
    return {types} if isinstance(types, str) else set(types or ())


def _graded(rule: FieldRule) -> bool:
    """Whether similarities between 0 and 1 count, not only right and wrong."""
    return callable(rule.compare) or rule.compare == "token_f1"


def inferred_schema(values: list[Any]) -> dict[str, Any]:
    """A schema without types that has the fields of these gold answers; for examples that have none."""
    present = [value for value in values if value is not None]
    if present and all(isinstance(value, dict) for value in present):
        names = dict.fromkeys(name for value in present for name in value)
        properties = {name: inferred_schema([v[name] for v in present if name in v]) for name in names}
        return {"type": "object", "properties": properties}
    if present and all(isinstance(value, list) for value in present):
        return {"type": "array", "items": inferred_schema([item for value in present for item in value])}
    return {}
