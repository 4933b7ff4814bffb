"""Reads the notation of compact_schema back, and brings two schemas into one form to compare them."""

from __future__ import annotations

import json
import re
from typing import Any

from llama_index_finetune_structured.json_schema import (
    UNIONS,
    map_sub_schemas,
    resolve_pointer,
    without_titles,
)
from llama_index_finetune_structured.local.schema.annotations import KEYWORDS

_TYPES = {"string", "integer", "number", "boolean", "null", "array", "object"}
_SPACE = re.compile(r"(?:[ \n]|//[^\n]*)*")
_BEFORE_COMMENT = re.compile(r'(?:"(?:[^"\\\n]|\\.)*"|/\*.*?\*/|(?!//)[^"\n])*// ([^\n]*)')
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_JSON = json.JSONDecoder()


def parse_types(text: str) -> dict[str, Any]:
    """The JSON schema that a text of compact_schema says; its named types are definitions."""
    return _Parser(text).schema()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def schema(self) -> dict[str, Any]:
        root = self.described(self.union(), 0)
        definitions = {}
        while self.space() < len(self.text):
            start = self.at
            name = self.word()
            self.take("=")
            definitions[name] = self.described(self.union(), start)
        return {**root, "$defs": definitions} if definitions else root

    # -- types --

    def union(self) -> Any:
        branches = [self.branch()]
        while self.taken("|"):
            branches.append(self.branch())
        if len(branches) == 1:
            return branches[0]
        values = [
            branch["const"] for branch in branches if isinstance(branch, dict) and set(branch) == {"const"}
        ]
        return {"enum": values} if len(values) == len(branches) else {"anyOf": branches}

    def branch(self) -> Any:
        words = None
        if self.taken("/*"):
            end = self.text.index(" */", self.at)
            words, self.at = self.text[self.at + 1 : end], end + 3
        node = self.atom()
        while self.text.startswith("[]", self.at):
            self.at += 2
            node = {"type": "array", "items": node}
        if self.text.startswith(" (", self.at):
            self.at += 2
            while not self.taken(")"):
                keyword = self.word(r"[^:]+")
                self.take(":")
                node = node if isinstance(node, dict) and keyword not in node else {"allOf": [node]}
                node = {**node, **_with_pointers({keyword: self.json()})}
                self.taken(",")
        return node if words is None else {**_as_object(node), "description": words}

    def atom(self) -> Any:
        if self.taken("("):
            node = self.union()
            self.take(")")
            return node
        if self.taken("{"):
            return self.object()
        if self.taken("["):
            items: list[Any] = []
            rest: dict[str, Any] = {}
            while not self.taken("]"):
                if self.taken("..."):
                    rest = {"items": self.union()["items"]}
                else:
                    items.append(self.union())
                self.taken(",")
            return {
                "type": "array",
                "prefixItems": items,
                "minItems": len(items),
                **(rest or {"maxItems": len(items)}),
            }
        if self.text[self.space()] in '"-0123456789':
            return {"const": self.json()}
        word = self.word()
        if word in _TYPES:
            return {"type": word}
        named = {"any": True, "never": False, "true": {"const": True}, "false": {"const": False}}
        return named.get(word, {"$ref": f"#/$defs/{word}"})

    def object(self) -> dict[str, Any]:
        node: dict[str, Any] = {
            "type": "object",
            "properties": {},
            "required": [],
            "additionalProperties": False,
        }
        a_line_each = re.match(r"(?: //[^\n]*)?\n", self.text[self.at :])
        while not self.taken("}"):
            start = self.space()
            if self.taken("..."):
                node["additionalProperties"] = True
            elif self.taken("[key]:"):
                node["additionalProperties"] = self.union()
            else:
                name = self.json() if self.text[self.space()] == '"' else self.word()
                if not self.taken("?"):
                    node["required"].append(name)
                self.take(":")
                field = self.union()
                if self.taken("="):
                    field = {**_as_object(field), "default": self.json()}
                node["properties"][name] = self.described(field, start if a_line_each else None)
            self.taken(",")
        return node

    def described(self, node: Any, start: int | None) -> Any:
        """The type with the comment of the line that begins at ``start``."""
        comment = None if start is None else _BEFORE_COMMENT.match(self.text, start)
        return node if comment is None else {**_as_object(node), "description": comment[1]}

    # -- tokens --

    def space(self) -> int:
        self.at = _SPACE.match(self.text, self.at).end()
        return self.at

    def taken(self, sign: str) -> bool:
        if not self.text.startswith(sign, self.space()):
            return False
        self.at += len(sign)
        return True

    def take(self, sign: str) -> None:
        assert self.taken(sign), f"expected {sign!r} at {self.text[self.at : self.at + 40]!r}"

    def word(self, pattern: str = _WORD.pattern) -> str:
        found = re.compile(pattern).match(self.text, self.space())
        assert found, f"expected a word at {self.text[self.at : self.at + 40]!r}"
        self.at = found.end()
        return found[0]

    def json(self) -> Any:
        value, self.at = _JSON.raw_decode(self.text, self.space())
        return value


def _with_pointers(node: Any) -> Any:
    """References by name as JSON pointers."""
    if not isinstance(node, dict):
        return node
    copy = map_sub_schemas(node, lambda _, child: _with_pointers(child))
    return {**copy, "$ref": f"#/$defs/{node['$ref']}"} if isinstance(node.get("$ref"), str) else copy


def _as_object(node: Any) -> dict[str, Any]:
    return node if isinstance(node, dict) else {} if node else {"not": {}}


# -- one form for two schemas that say the same --

_SILENT = {"$schema", "$id", "id", "$defs", "definitions", "title", "description"}
_OF_PARTS = {"properties", "items", "prefixItems", "required", "additionalProperties"}


def in_one_form(schema: Any, depth: int = 7) -> Any:
    """The schema unfolded to a depth, unions flat, in the words that the notation keeps apart."""
    return _form(schema, without_titles(schema), depth)


def _form(root: Any, node: Any, depth: int, *, field: bool = False) -> Any:
    node, words = _unfolded(root, _as_object(node))
    if depth == 0 and node:
        return "deeper"
    if node.get("additionalProperties") is False and node.get("properties"):
        node = {key: value for key, value in node.items() if key != "additionalProperties"}
    form = {key: value for key, value in node.items() if key in KEYWORDS - _SILENT}
    form = map_sub_schemas(
        form,
        lambda key, child: _form(root, child, depth - (key not in UNIONS), field=key == "properties"),
    )
    form = _flat(form)
    if words:
        form["description"] = " ".join(words)
    if field and node.get("default") is not None:
        form["default"] = node["default"]
    return form


def _unfolded(root: Any, node: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The schema with what its reference names in it, and all descriptions on the way."""
    words: list[str] = []
    seen: list[str] = []
    while True:
        if (text := " ".join(str(node.get("description") or "").split())) and text not in words:
            words.append(text)
        if isinstance(node.get("$ref"), str):
            if "draft-0" in str(root.get("$schema")):
                node = {key: node[key] for key in ("$ref", "default") if key in node}
            inner = _as_object(resolve_pointer(root, node["$ref"]))
        elif isinstance(node.get("allOf"), list) and len(node["allOf"]) == 1:
            inner = _as_object(node["allOf"][0])
        else:
            return node, words
        if node.get("$ref") in seen:
            return {}, words
        seen.append(node.get("$ref", ""))
        beside = {k: v for k, v in node.items() if k not in ("$ref", "allOf", "description")}
        said = set(beside) & KEYWORDS - _SILENT
        if said & set(inner) or (said and {"$ref", "allOf"} & set(inner)):
            return {"allOf": [inner, beside]}, words
        node = {**inner, **beside}


def _flat(node: dict[str, Any]) -> dict[str, Any]:
    """Constants, enums, lists of types and unions as one list of alternatives; no words for what is meant anyway."""
    values = [node["const"]] if "const" in node else node.get("enum")
    if values and not any(isinstance(value, (list, dict)) for value in values):
        rest = {key: value for key, value in node.items() if key not in ("const", "enum")}
        if fitting := [value for value in values if rest.get("type") in _kinds(value)]:
            values = fitting
            del rest["type"]
        return {**rest, "one of": [{"value": json.dumps(value)} for value in values]}
    if isinstance(kinds := node.get("type"), list):
        rest = {key: value for key, value in node.items() if key != "type"}
        if not _OF_PARTS & set(rest):
            return _flat({**rest, "anyOf": [{"type": kind} for kind in kinds]})
        return _flat(
            {"anyOf": [{**(rest if kind in ("object", "array") else {}), "type": kind} for kind in kinds]}
        )
    unions = [key for key in ("anyOf", "oneOf") if node.get(key)]
    if len(unions) == 1 and not (_OF_PARTS | {"type"}) & set(node):
        parts: list[Any] = []
        for branch in node[unions[0]]:
            parts += branch["one of"] if set(branch) == {"one of"} else [branch]
        rest = {key: value for key, value in node.items() if key not in unions}
        return {**rest, "one of": [{"value": "null"} if part == {"type": "null"} else part for part in parts]}
    return _flat_object(node) if node.get("type") == "object" else _without_any_items(node)


def _flat_object(node: dict[str, Any]) -> dict[str, Any]:
    form = {key: value for key, value in node.items() if value or key not in ("properties", "required")}
    if "required" in form:
        form["required"] = sorted(form["required"])
    return form if "properties" in form else {"additionalProperties": {}, **form}


def _without_any_items(node: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if (key, value) != ("items", {})}


def _kinds(value: Any) -> tuple[str, ...]:
    """The types of JSON schema that a scalar is of."""
    if isinstance(value, bool):
        return ("boolean",)
    kinds = {int: ("integer", "number"), float: ("number",), str: ("string",), type(None): ("null",)}
    return kinds.get(type(value), ())
