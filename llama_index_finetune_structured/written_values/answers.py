"""The written values of whole answers, found by their JSON schema: read, and spelled as a document has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any, NamedTuple

from ..json_schema import UNIONS, find_error, is_number, resolve_pointer
from .annotation import Money
from .kinds import KEYWORD, WrittenKind, stands_in, written_kind
from .numbers import number_text
from .readings import DocumentTexts

__all__ = [
    "ReadAnswer",
    "absent_values",
    "has_written_values",
    "json_values",
    "read_answer",
    "spelled_answer",
]


class ReadAnswer(NamedTuple):
    """An answer whose written values are in their canonical texts, which are read the same everywhere.

    ``unsure``: what has two meanings, of which the likelier one was taken. ``unreadable``: what is of another kind,
    and was left as it is. Each begins with the value's path.
    """

    value: Any
    unsure: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()


def has_written_values(schema: Any) -> bool:
    """Whether a schema has the keyword at any depth, so that most answers need no walk."""
    waiting = [schema]
    for node in waiting:
        if isinstance(node, Mapping):
            if KEYWORD in node:
                return True
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return False


def read_answer(schema: Mapping[str, Any] | None, value: Any, texts: Sequence[str | None]) -> ReadAnswer:
    """Read the written values of an answer, parsed, in the light of the texts that it is from."""
    if schema is None or not has_written_values(schema):
        return ReadAnswer(value)
    document = DocumentTexts(texts)
    unsure, unreadable = list[str](), list[str]()

    def read(path: str, kind: WrittenKind, text: str) -> str:
        try:
            reading = kind.read(text, document)
        except ValueError as error:
            unreadable.append(f"{path}: {error}")
            return text
        if reading.others:
            choices = " or ".join(map(kind.text, (reading.value, *reading.others)))
            unsure.append(f"{path}: {text!r} may be {choices}")
        return kind.text(reading.value)

    found = _mapped(schema, schema, value, "", read)
    return ReadAnswer(found, tuple(unsure), tuple(unreadable))


def absent_values(schema: Mapping[str, Any], value: Any, texts: Sequence[str | None]) -> list[str]:
    """The written values of an answer that no text has in any spelling, each with its path."""
    document, absent = DocumentTexts(texts), list[str]()

    def look(path: str, kind: WrittenKind, text: str) -> str:
        with suppress(ValueError):
            if not stands_in(kind.spelling(text, document), document.texts):
                found = kind.unsure_spelling(text, document)
                why = f", where {found}: name only locales that write the one meant" if found else ""
                absent.append(f"{path}: {text!r} does not stand in the text{why}")
        return text

    if has_written_values(schema):
        _mapped(schema, schema, value, "", look)
    return absent


def spelled_answer(schema: Mapping[str, Any] | None, value: Any, texts: Sequence[str | None]) -> Any:
    """The answer, parsed, with its written values as the texts have them, so that a model learns to copy them.

    Numbers of JSON become texts. What the texts do not have, and what cannot be read, stays.
    """
    if schema is None or not has_written_values(schema):
        return value
    document = DocumentTexts(texts)

    def spelled(_: str, kind: WrittenKind, text: str) -> str:
        try:
            return kind.spelling(text, document)
        except ValueError:
            return text

    return _mapped(schema, schema, value, "", spelled)


def json_values(value: Any) -> Any:
    """The value with decimals in their canonical texts: others, such as ``1.834``, would be read by a locale."""
    if isinstance(value, Decimal):
        return number_text(value)
    if isinstance(value, Money):
        return {"amount": number_text(value.amount), "currency": value.currency}
    if isinstance(value, dict):
        return {name: json_values(item) for name, item in value.items()}
    return [json_values(item) for item in value] if isinstance(value, list | tuple) else value


def _mapped(
    root: Mapping[str, Any], node: Any, value: Any, path: str, change: Callable[[str, WrittenKind, str], str]
) -> Any:
    """The value with each text at a written place changed."""
    schemas = _holding(root, node, value)
    if isinstance(value, str) or is_number(value):
        kind = next(filter(None, map(written_kind, schemas)), None)
        if kind is None:
            return value
        return change(path or "the answer", kind, value if isinstance(value, str) else kind.text(value))
    if isinstance(value, dict):
        return {
            name: _mapped_by(
                root, _children(schemas, "properties", name), item, f"{path}.{name}".lstrip("."), change
            )
            for name, item in value.items()
        }
    if isinstance(value, list):
        items = [each["items"] for each in schemas if isinstance(each.get("items"), Mapping)]
        return [_mapped_by(root, items, item, f"{path}[{n}]", change) for n, item in enumerate(value)]
    return value


def _mapped_by(root: Mapping[str, Any], nodes: list[Any], value: Any, path: str, change: Any) -> Any:
    return _mapped(root, {"allOf": nodes}, value, path, change) if nodes else value


def _children(schemas: Sequence[Mapping[str, Any]], keyword: str, name: str) -> list[Any]:
    found = []
    for each in schemas:
        named = each.get(keyword)
        if isinstance(named, Mapping) and name in named:
            found.append(named[name])
        elif isinstance(rest := each.get("additionalProperties"), Mapping):
            found.append(rest)
    return found


def _holding(root: Mapping[str, Any], node: Any, value: Any) -> list[Mapping[str, Any]]:
    """The schemas that hold for a value: a node, what it refers to, and the branches of its unions that it fits."""
    waiting, found, seen = [node], list[Mapping[str, Any]](), set[int]()
    for each in waiting:
        if not isinstance(each, Mapping) or id(each) in seen:
            continue
        seen.add(id(each))
        found.append(each)
        if isinstance(reference := each.get("$ref"), str):
            waiting.append(resolve_pointer(root, reference))
        for keyword in UNIONS:
            branches = each.get(keyword)
            if isinstance(branches, list):
                waiting += branches if keyword == "allOf" else _fitting(root, branches, value)
    return found


def _fitting(root: Mapping[str, Any], branches: Sequence[Any], value: Any) -> Iterator[Any]:
    """The branches that a value fits; of one alone beside null, whose values are being read, that one."""
    others = [each for each in branches if not (isinstance(each, Mapping) and each.get("type") == "null")]
    if len(others) == 1:
        yield from others
        return
    for branch in others:
        schema = {**{key: root[key] for key in ("$defs", "definitions") if key in root}, **branch}
        try:
            if find_error(schema, value) is None:
                yield branch
        except ValueError:
            continue
