"""A JSON schema as types in the notation that a person would write, in a fraction of the tokens.

Everything that decides whether a value is valid is kept: a keyword without a notation of its own stands as JSON in
parentheses behind its type. ``{author: string, year?: integer (minimum: 1900)}[]`` is a list of objects whose
``year`` may be left out. An object has no other keys than those named, unless ``...`` or ``[key]: type`` follows.
``[string, ...integer[]]`` is a list of a string and any number of integers.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from string import ascii_uppercase
from typing import Any, NamedTuple

from ...json_schema import follow_references, map_sub_schemas, resolve_pointer, sub_schemas, without_titles
from .annotations import KEYWORDS
from .closing import LEARNED_KEYS
from .drafts import ignores_beside_references

__all__ = ["compact_schema"]

_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DEFINITION = re.compile(r"#/(?:\$defs|definitions)/[^/]+")
_TYPES = {"string", "integer", "number", "boolean", "null", "array", "object"}
_WORDS = _TYPES | {"any", "never", "true", "false"}
_UNIONS = ("anyOf", "oneOf")
_OF_PARTS = {"properties", "required", "additionalProperties", "items", "prefixItems"}
# Keywords that decide which values are valid. A discriminator repeats what the constants of the branches say.
_DECIDING = KEYWORDS - {
    *("$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$defs", "definitions", "title", "description"),
    LEARNED_KEYS,
}
_UNION, _BRANCH, _ATOM = range(3)
_OFTEN, _LONG = 4, 16  # chosen: places and characters from which a name for a union saves tokens


class _Type(NamedTuple):
    """A type's text; ``binds``: whether it is a union, one branch of a union, or what ``[]`` may follow."""

    text: str
    binds: int = _ATOM

    def within(self, binds: int) -> str:
        """The text, in parentheses where it binds less than its place needs."""
        return self.text if self.binds >= binds else f"({self.text})"


def compact_schema(schema: Mapping[str, Any]) -> str:
    """Write a JSON schema as types.

    Args:
        schema: A JSON schema. ``oneOf`` is written as ``anyOf`` is; titles and examples are left out.

    Returns:
        The type of the answer, then a line for each type that is used by its name, such as
            ``Song = {title: string}``: definitions, and unions that stand in four places or more. A description
            stands after ``//`` in the first line of its field, or between ``/*`` and ``*/`` before a type that is no
            field's.
    """
    root = without_titles(schema)
    plain = _Writer(root)
    text = plain.text()
    often = [union for union, uses in plain.unions.items() if uses >= _OFTEN and len(union) >= _LONG]
    return _Writer(root, often).text() if often else text


class _Writer:
    """``named``: unions, as text, that are written once and used by a name.

    ``unions``: how often each union was written. ``_names``: pointer of each definition that is written once and
    used by its name.
    """

    def __init__(self, root: Mapping[str, Any], named: Sequence[str] = ()) -> None:
        self._root = root
        self._ignores_beside = ignores_beside_references(root)
        self.unions: Counter[str] = Counter()
        self._named = dict(zip(named, ascii_uppercase, strict=False))  # a letter is one token
        self._names: dict[str, str] = {}
        uses: Counter[str] = Counter()
        waiting: list[Any] = [root]
        for node in waiting:  # grows by what the references lead to
            for reference in _references(node):
                if reference not in uses:
                    waiting.append(resolve_pointer(root, reference))
                uses[reference] += 1
        for reference, count in uses.items():
            if count > 1 or not _DEFINITION.fullmatch(reference):  # others may lead to what they stand in
                self._name(reference)

    def text(self) -> str:
        lines = [self._line("", {"$ref": "#"} if "#" in self._names else self._root, "")]
        while len(lines) <= len(self._names):  # grows by references in JSON
            reference, name = list(self._names.items())[len(lines) - 1]
            lines.append(self._line(f"{name} = ", resolve_pointer(self._root, reference), ""))
        return "\n".join([*lines, *(f"{name} = {union}" for union, name in self._named.items())])

    def _name(self, reference: str) -> str:
        """The name of a definition, given at its first use."""
        if reference in self._names:
            return self._names[reference]
        name = reference.rpartition("/")[2] if reference != "#" else "Answer"
        if not _PLAIN_NAME.fullmatch(name) or name in _WORDS:
            name = "Type_" + re.sub(r"\W", "_", name, flags=re.ASCII)
        taken = {*self._names.values(), *self._named.values()}
        names = (name if number == 1 else f"{name}_{number}" for number in range(1, len(taken) + 2))
        return self._names.setdefault(reference, next(n for n in names if n not in taken))

    def _line(self, start: str, node: Any, indent: str, *, default: bool = False) -> str:
        """A field or a definition: its type after ``start``, its description at the end of the first line."""
        node, words = self._inlined(node)
        text = start + self._type(node, indent).text
        if default and isinstance(node, Mapping):
            value = {**follow_references(self._root, node), **node}.get("default")
            text += "" if value is None else f" = {_json(value)}"
        first, line_break, rest = text.partition("\n")
        return f"{first} // {words}{line_break}{rest}" if words else text

    def _inner(self, node: Any, indent: str) -> _Type:
        """The type of what is no field, its description before it."""
        node, words = self._inlined(node)
        inner = self._type(node, indent)
        return (
            _Type(f"/* {words.replace('*/', '* /')} */ {inner.within(_BRANCH)}", _BRANCH) if words else inner
        )

    def _inlined(self, node: Any) -> tuple[Any, str]:
        """The schema with what is used once in the place of its reference; and its descriptions, the outer first."""
        words: list[str] = []
        while isinstance(node, Mapping):
            if (text := " ".join(str(node.get("description") or "").split())) and text not in words:
                words.append(text)
            beside = {key: value for key, value in node.items() if key in _DECIDING or key == "default"}
            reference, only = beside.get("$ref"), beside.get("allOf")
            if isinstance(reference, str) and self._ignores_beside:
                node = beside = {key: beside[key] for key in ("$ref", "default") if key in beside}
            if isinstance(reference, str) and reference not in self._names:
                inner = resolve_pointer(self._root, beside.pop("$ref"))
            elif isinstance(only, list) and len(only) == 1 and reference is None:
                [inner] = beside.pop("allOf")
            else:
                break
            said = beside.keys() & _DECIDING
            if not said and not isinstance(inner, Mapping):
                node = inner
            elif (
                not isinstance(inner, Mapping)
                or said & inner.keys()
                or (said and inner.keys() & {"$ref", "allOf"})
            ):
                node = {"allOf": [inner, beside]}  # both hold, and one object cannot have a keyword twice
                break
            else:
                node = {**inner, **beside}
        return node, " ".join(words)

    def _type(self, node: Any, indent: str) -> _Type:
        """The notation of an inlined schema, and the keywords that have none as JSON behind it."""
        if not isinstance(node, Mapping):
            return _Type("never" if node is False else "any")
        rest = {key: value for key, value in node.items() if key in _DECIDING}
        kind = self._notation(rest, indent)
        if not rest:
            return kind
        more = ", ".join(f"{key}: {self._as_json({key: rest[key]}, key)}" for key in sorted(rest))
        return _Type(f"{kind.within(_ATOM)} ({more})", _BRANCH)

    def _notation(self, rest: dict[str, Any], indent: str) -> _Type:
        """The type in notation; the keywords of ``rest`` that it expresses are removed there."""
        if isinstance(rest.get("$ref"), str):
            return _Type(self._name(rest.pop("$ref")))
        if values := _literals(rest):
            return self._union([_Type(_json(value)) for value in values])
        if union := _lone_union(rest):
            return self._union([self._inner(branch, indent) for branch in rest.pop(union)])
        kind = rest.get("type")
        if isinstance(kind, list) and set(kind) <= _TYPES:
            return self._kinds(kind, rest, indent)
        if kind not in _TYPES:
            return _Type("any")
        del rest["type"]
        if kind == "array":
            return self._array(rest, indent)
        if kind == "object" and isinstance(rest.get("properties", {}), Mapping):
            return self._object(rest, indent)
        return _Type(kind)

    def _kinds(self, kinds: list[str], rest: dict[str, Any], indent: str) -> _Type:
        """A list of types as a union; keywords of fields and items go to the one that they concern."""
        del rest["type"]
        if not rest.keys() & _OF_PARTS:
            return self._union([_Type(kind) for kind in kinds])
        concerned = dict(rest)
        rest.clear()
        parts = [
            self._type({"type": kind, **concerned}, indent) if kind in ("object", "array") else _Type(kind)
            for kind in kinds
        ]
        return self._union(parts)

    def _union(self, branches: list[_Type]) -> _Type:
        """The union of its branches, by its name where it has one."""
        if len(branches) == 1:
            return branches[0]
        text = " | ".join(branch.text for branch in branches)
        self.unions[text] += 1
        return _Type(self._named[text]) if text in self._named else _Type(text, _UNION)

    def _array(self, rest: dict[str, Any], indent: str) -> _Type:
        first, items = rest.get("prefixItems"), rest.get("items", True)
        if isinstance(first, list) and first and rest.get("minItems") == len(first):
            is_open = rest.get("maxItems") != len(first)
            if not is_open or (isinstance(items, Mapping) and items):
                types = [self._inner(item, indent).text for item in first]
                types += [f"...{self._inner(items, indent).within(_ATOM)}[]"] if is_open else []
                for key in ("prefixItems", "items", "minItems", *(() if is_open else ("maxItems",))):
                    rest.pop(key, None)
                return _Type(f"[{', '.join(types)}]")
        if first is not None or not isinstance(items, Mapping) or not items:
            return _Type("array")
        return _Type(f"{self._inner(rest.pop('items'), indent).within(_ATOM)}[]")

    def _object(self, rest: dict[str, Any], indent: str) -> _Type:
        """An object in one line, or in a line for each field where one has a description."""
        properties = rest.pop("properties", {})
        others = rest.pop("additionalProperties", not properties)
        required = rest.pop("required", ())
        if missing := [name for name in required if name not in properties]:
            rest["required"] = missing
        if others is True and not properties:
            return _Type("object")
        inner = f"{indent} "
        fields = [
            self._line(f"{_key(name)}{'' if name in required else '?'}: ", field, inner, default=True)
            for name, field in properties.items()
        ]
        if isinstance(others, Mapping):
            fields.append("..." if not others else f"[key]: {self._inner(others, inner).text}")
        elif others is True:
            fields.append("...")
        described = any(self._inlined(field)[1] for field in properties.values())
        if not described and not any("\n" in field for field in fields):
            return _Type("{" + ", ".join(fields) + "}")
        return _Type("{\n" + "".join(f"{inner}{field}\n" for field in fields) + indent + "}")

    def _as_json(self, node: Mapping[str, Any], keyword: str) -> str:
        """One keyword's value as JSON, references in it as names."""

        def named(_: str, child: Any) -> Any:
            if not isinstance(child, Mapping):
                return child
            copy = map_sub_schemas(child, named)
            if isinstance(reference := child.get("$ref"), str):
                copy["$ref"] = self._name(reference)
            return copy

        return _json(map_sub_schemas(node, named)[keyword])


def _references(node: Any) -> Iterator[str]:
    """The references in a schema, without following them and without those in definitions."""
    waiting = [node]
    for schema in waiting:
        if isinstance(schema, Mapping):
            if isinstance(reference := schema.get("$ref"), str):
                yield reference
            waiting += [
                child for keyword, _, child in sub_schemas(schema) if keyword not in ("$defs", "definitions")
            ]


def _literals(rest: dict[str, Any]) -> list[Any]:
    """The values of ``const`` or ``enum``, removed from ``rest``; nothing where one is a list or an object."""
    keyword = "const" if "const" in rest else "enum"
    values = [rest.get("const")] if keyword == "const" else rest.get("enum")
    if keyword not in rest or not isinstance(values, list) or any(isinstance(v, list | dict) for v in values):
        return []
    del rest[keyword]
    if fitting := [value for value in values if _is_of(rest.get("type"), value)]:
        del rest["type"]  # what it refuses of the values is left out
        return fitting
    return values


def _is_of(kind: Any, value: Any) -> bool:
    kinds = {"string": str, "integer": int, "number": int | float, "boolean": bool, "null": type(None)}
    return kind in kinds and isinstance(value, kinds[kind]) and (kind == "boolean") == isinstance(value, bool)


def _lone_union(rest: Mapping[str, Any]) -> str | None:
    """The keyword of a union beside which no other keyword describes the value's parts."""
    if rest.keys() & (_OF_PARTS | {"type"}):
        return None
    [*unions] = (key for key in _UNIONS if isinstance(rest.get(key), list) and rest[key])
    return unions[0] if len(unions) == 1 else None


def _key(name: str) -> str:
    return name if _PLAIN_NAME.fullmatch(name) and name != "key" else _json(name)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
