"""What to write instead: fixes for the common mistakes in a schema file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

__all__ = ["key_reason", "type_suggestion", "value_reason", "yaml_fix"]

_FIELD_KEYS = ("type", "enum", "description", "optional", "min", "max", "locales")
_FILE_KEYS = ("name", "description", "locales", "fields", "types", "rules")
_KEY_FIXES = {
    **dict.fromkeys(("required", "nullable", "default"), "optional: true makes a field optional"),
    **dict.fromkeys(("minimum", "minLength", "min_length", "minItems", "ge", "gt"), "did you mean min?"),
    **dict.fromkeys(("maximum", "maxLength", "max_length", "maxItems", "le", "lt"), "did you mean max?"),
    **dict.fromkeys(("values", "choices", "options", "literal"), "did you mean enum?"),
    **dict.fromkeys(("locale", "language"), "did you mean locales?"),
    **dict.fromkeys(("items", "of"), "a list is type: list of string"),
    **dict.fromkeys(("pattern", "format", "multipleOf"), "for this write a class and give file.py:Class"),
    **dict.fromkeys(
        ("properties", "fields"), "describe an inner object under types and give its name as type"
    ),
}
_TYPE_NAMES = {
    **dict.fromkeys(("str", "text", "char", "varchar"), "string"),
    **dict.fromkeys(("int", "long"), "integer"),
    **dict.fromkeys(("float", "double"), "number"),
    **dict.fromkeys(("numeric",), "decimal"),
    **dict.fromkeys(("currency", "price", "amount"), "money"),
    **dict.fromkeys(("bool",), "boolean"),
    **dict.fromkeys(("timestamp", "time"), "datetime"),
    **dict.fromkeys(("list", "array"), "list of string"),
}
_LISTS = (
    re.compile(r"(?P<item>[\w ]+)\[\]"),
    re.compile(r"(?:list|array|set|sequence)(?: of | ?\[| ?<| )\s*(?P<item>[\w ]+?)\s*[\]>]?", re.IGNORECASE),
)
_OBJECTS = {"object", "dict", "map", "mapping", "record", "json"}
# Part of PyYAML's problem -> what to do about it.
_YAML_FIXES = (
    ("but got '?'", "inside { } write optional: true in place of the ?, or quote the type"),
    ("but got '['", "a list is written: list of string"),
    ("but got ':'", "close the { }, and quote a text with a colon in it"),
    ("mapping keys are not allowed", "write optional: true in place of the ?"),
    ("mapping values are not allowed", "quote a text with a colon in it, or correct the indentation"),
    ("'\\t'", "use spaces in place of the tab"),
    ("cannot start any token", "quote a text that begins with this character"),
    ("another document", "a file holds one schema: remove the line ---"),
    ("unexpected end of stream", "close the quotes"),
    ("but got '<stream end>'", "close the { } or [ ]"),
    ("block", "indent the fields of one mapping by the same number of spaces"),
)


def type_suggestion(text: str, known: Iterable[str]) -> str:
    """`` (did you mean ...?)`` for the name of a type that is not known, or an empty text."""
    if "|" in text or " or " in text:
        return " (a field has one type; optional: true allows an empty one)"
    meant = _list_type(text) or _nearest(text, list(known))
    if meant is not None:
        return f" (did you mean {meant!r}?)"
    if text.lower() in _OBJECTS:
        return " (describe an inner object under types and give its name here)"
    return ""


def _list_type(text: str) -> str | None:
    item = next((match["item"].strip() for form in _LISTS if (match := form.fullmatch(text))), None)
    return None if item is None else f"list of {_TYPE_NAMES.get(item.lower(), item)}"


def _nearest(text: str, names: list[str]) -> str | None:
    by_case = {name.lower(): name for name in names}
    same = _TYPE_NAMES.get(text.lower()) or by_case.get(text.lower())
    near = difflib.get_close_matches(text.lower(), by_case, n=1)
    return same or (by_case[near[0]] if near else None)


def key_reason(key: str, *, in_file: bool) -> str:
    """Why a key is refused, and the one that was probably meant; ``in_file``: on the file's top level."""
    expected = _FILE_KEYS if in_file else _FIELD_KEYS
    near = difflib.get_close_matches(key, expected, n=1)
    fix = f"did you mean {near[0]}?" if near else _KEY_FIXES.get(key)
    hint = fix or "a text with a comma or a colon in it needs quotes"
    return f"unknown key; expected {', '.join(expected)} ({hint})"


def value_reason(detail: Any) -> str:
    """The reason of one of Pydantic's errors, with what was expected in the terms of the file."""
    kind, place, message = detail["type"], detail["loc"], str(detail["msg"])
    found = type(detail["input"]).__name__.replace("NoneType", "nothing").replace("str", "a text")
    if kind == "missing":
        return "missing; expected name and fields"
    if "enum" in place and len(place) > place.index("enum") + 1:
        return f"expected a text or an integer, found {found}; quotes make a text of it"
    if place[-1:] in (("int",), ("float",)) or {"min", "max"} & set(place):
        return f"expected a number without quotes, found {found}"
    if kind in ("dict_type", "model_type"):
        return f"expected a mapping, such as title: string (with a space after the colon), found {found}"
    if kind == "list_type":
        return f"expected a list, such as [article, book], found {found}"
    if kind == "string_type" and found == "list":
        return "expected a single one, found a list; a list is written: list of string"
    if kind == "string_type":
        return f"expected a text, found {found}; quotes make a text of a number"
    if kind == "too_short":
        return "empty; expected at least one entry"
    if kind.startswith("bool"):
        return f"expected true or false, found {detail['input']!r}"
    return message.removeprefix("Value error, ")


def yaml_fix(problem: str) -> str:
    """``; what to do`` about one of PyYAML's problems, or an empty text."""
    return next((f"; {fix}" for part, fix in _YAML_FIXES if part in problem), "")
