"""The strings and numbers of answers, and their places in the schema: by names of properties, and items of lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from ...json_schema import UNIONS, resolve_pointer
from ...written_values.kinds import WRITTEN_NUMBERS, WrittenKind, written_kind
from .closing import LEARNED_KEYS
from .learned_keys import sub_values
from .spelling import spelled_json

__all__ = ["AnswerLeaf", "LeafKind", "PlacePath", "answer_leaves", "leaf_paths", "written_kind_at"]

LeafKind = Literal["string", "number"]

PathPart = tuple[Literal["properties", "values", "items"], str]
"""A named property, a value of an object with any keys, or an item."""
PlacePath = tuple[PathPart, ...]


class AnswerLeaf(NamedTuple):
    """A string or number of an answer. ``path``: keys and indices; ``text``: of a number, its JSON."""

    path: tuple[str | int, ...]
    kind: LeafKind
    text: str


def answer_leaves(value: Any, path: tuple[str | int, ...]) -> Iterator[AnswerLeaf]:
    """The strings and numbers of a value in the order of its JSON."""
    if isinstance(value, str):
        yield AnswerLeaf(path, "string", value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield AnswerLeaf(path, "number", spelled_json(value))
    elif isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from answer_leaves(item, (*path, name))


def leaf_paths(
    root: Mapping[str, Any], schemas: Sequence[Any], value: Any, path: PlacePath | None
) -> Iterator[PlacePath | None]:
    """The place of each string and number of a value; None where it is not free.

    ``schemas``: all that may hold for the value; ``path``: its place, None where the schema leaves it open which.
    """
    if isinstance(value, bool) or value is None:
        return
    nodes = _expanded(root, schemas)
    if isinstance(value, str):
        yield path if any(_leaves_free(node, "string") for node in nodes) else None
    elif isinstance(value, int | float):
        yield path if any(_leaves_free(node, "number", "integer") for node in nodes) else None
    elif isinstance(value, list):
        inner = list[list[Any]]([] for _ in value)
        for node in nodes:
            for n, (_, child, _) in enumerate(sub_values(node, value)):
                inner[n].append(child)
        for item, children in zip(value, inner, strict=True):
            yield from leaf_paths(root, children, item, None if path is None else (*path, ("items", "")))
    else:
        yield from _paths_of_object(root, nodes, value, path)


def _paths_of_object(
    root: Mapping[str, Any],
    nodes: Sequence[Mapping[str, Any]],
    value: Mapping[str, Any],
    path: PlacePath | None,
) -> Iterator[PlacePath | None]:
    named = {name for node in nodes for key in ("properties", LEARNED_KEYS) for name in node.get(key) or ()}
    for name, item in value.items():
        children = [child for node in nodes for _, child, _ in sub_values(node, {name: item})]
        part: PathPart = ("properties", name) if name in named else ("values", "")
        # Where some keys are named and others are data, a name that training left out would count as data.
        known = path is not None and (name in named or not named)
        yield from leaf_paths(root, children, item, (*path, part) if known and path is not None else None)


def written_kind_at(schema: Mapping[str, Any], path: PlacePath) -> WrittenKind | None:
    """The kind of numbers or days that the strings of a place are, as they are written; None where they are others.

    Of numbers ``number``, without locales: they are found in texts without these. Times have too many forms.
    """
    nodes = _expanded(schema, [schema])
    for keyword, name in path:
        key = {"properties": "properties", "values": "additionalProperties", "items": "items"}[keyword]
        children = [node.get(key) for node in nodes]
        if keyword == "properties":
            children = [child.get(name) for child in children if isinstance(child, Mapping)]
        nodes = _expanded(schema, children)
    kinds = {kind for node in nodes if (kind := written_kind(node)) is not None}
    if kinds and {kind.name for kind in kinds} <= WRITTEN_NUMBERS:
        return WrittenKind("number", ())
    kind = kinds.pop() if len(kinds) == 1 else None
    return kind if kind is not None and kind.name == "date" else None


def _expanded(root: Mapping[str, Any], schemas: Sequence[Any]) -> list[Mapping[str, Any]]:
    """The schemas with those that they refer to, and the branches of their unions."""
    waiting, found, seen = list(schemas), list[Mapping[str, Any]](), set[int]()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, Mapping) or id(node) in seen:
            continue
        seen.add(id(node))
        found.append(node)
        if isinstance(reference := node.get("$ref"), str):
            waiting.append(resolve_pointer(root, reference))
        for keyword in UNIONS:
            waiting += node.get(keyword) or ()
    return found


def _leaves_free(node: Mapping[str, Any], *types: str) -> bool:
    """Whether a schema allows any value of a type, rather than those it lists or a format."""
    if any(keyword in node for keyword in ("enum", "const", "format", "$ref", *UNIONS)):
        return False
    named = node.get("type")
    return named is None or any(kind in types for kind in (named if isinstance(named, list) else [named]))
