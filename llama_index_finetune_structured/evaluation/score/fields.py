"""The fields of a schema, flattened, and the score of one answer in each of them.

An object's properties are fields of their own (``author.name``); a list is one field whose items are
matched one to one (``citations``), and the properties of its items are reported beside it
(``citations[].year``). What a schema leaves open (unions of objects, free dictionaries) is compared whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ...json_schema import UNIONS, resolve_pointer
from .rules import FieldRule

__all__ = ["Field", "fields_of", "schema_of"]

FieldKind = Literal["value", "text", "list"]
_NUMBERS = {"number", "integer"}


@dataclass(frozen=True)
class Field:
    """One field: where it is, how it is compared and, of a list, what its items are made of."""

    path: str
    keys: tuple[str, ...]
    kind: FieldKind
    rule: FieldRule = field(default_factory=FieldRule)
    items: tuple[Field, ...] = ()

    def value_in(self, answer: Any) -> Any:
        """The field's value, or None where it is absent: null, empty text and an empty list are absent."""
        for key in self.keys:
            answer = answer.get(key) if isinstance(answer, dict) else None
        return None if answer is None or answer == [] or answer == {} or _blank(answer) else answer


def _blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def fields_of(schema: Mapping[str, Any], rules: Mapping[str, FieldRule]) -> tuple[Field, ...]:
    """Flatten a JSON schema into fields; ``rules`` (by path) go before what the types suggest."""
    return tuple(_Flattener(schema, rules).fields(schema, "", (), ()))


@dataclass(frozen=True)
class _Flattener:
    root: Mapping[str, Any]
    rules: Mapping[str, FieldRule]

    def fields(
        self, schema: Mapping[str, Any], path: str, keys: tuple[str, ...], above: tuple[str, ...]
    ) -> list[Field]:
        schema, above = self._resolve(schema, above)
        properties = schema.get("properties")
        whole = path.removesuffix(".") in self.rules
        if not isinstance(properties, dict) or not properties or whole:
            found = self._leaf(schema, path, keys, above)
            return [] if found.rule.compare == "ignore" else [found]
        out: list[Field] = []
        for name, inner in properties.items():
            below = f"{path}.{name}" if path and not path.endswith("[].") else f"{path}{name}"
            out += self.fields(inner if isinstance(inner, dict) else {}, below, (*keys, name), above)
        return out

    def _leaf(
        self, schema: Mapping[str, Any], path: str, keys: tuple[str, ...], above: tuple[str, ...]
    ) -> Field:
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
        """Follow $ref and single-choice unions (Optional); a schema inside itself stays open."""
        while True:
            reference = schema.get("$ref")
            if isinstance(reference, str):
                if reference in above:
                    return {}, above
                found = resolve_pointer(self.root, reference)
                schema, above = found if isinstance(found, dict) else {}, (*above, reference)
                continue
            choices = [c for c in _choices(schema) if c.get("type") != "null"]
            if len(choices) != 1:
                return schema, above
            schema = choices[0]


def _choices(schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    for key in UNIONS:
        if isinstance(schema.get(key), list) and "properties" not in schema:
            return [choice for choice in schema[key] if isinstance(choice, dict)]
    return []


def _suggested(schema: Mapping[str, Any]) -> Literal["exact", "number", "date"]:
    types = schema.get("type")
    kinds = {types} if isinstance(types, str) else set(types or ())
    if schema.get("format") in ("date", "date-time"):
        return "date"
    return "number" if kinds and kinds <= _NUMBERS | {"null"} else "exact"


def _graded(rule: FieldRule) -> bool:
    return callable(rule.compare) or rule.compare == "token_f1"


def schema_of(values: list[Any]) -> dict[str, Any]:
    """The loosest schema that shows the fields of these gold answers; used where none is known."""
    present = [value for value in values if value is not None]
    if present and all(isinstance(value, dict) for value in present):
        names = dict.fromkeys(name for value in present for name in value)
        properties = {name: schema_of([v[name] for v in present if name in v]) for name in names}
        return {"type": "object", "properties": properties}
    if present and all(isinstance(value, list) for value in present):
        return {"type": "array", "items": schema_of([item for value in present for item in value])}
    return {}
