"""Which properties of a schema the answers fill: a property that none fills is not learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ...example import Example, content_hash
from ...json_schema import UNIONS, follow_references
from .problems import Fault, first_of

__all__ = ["FieldUse"]

_UNION_DEPTH = 12  # chosen: as for the order of keys; ends the walk of a union that contains itself


class FieldUse:
    """Counts, for each schema, the answers that fill a property; null and a missing key fill nothing."""

    def __init__(self) -> None:
        self._schemas: dict[str, Mapping[str, Any]] = {}
        self._answers: Counter[str] = Counter()
        self._filled: dict[str, set[str]] = {}

    def add(self, example: Example) -> None:
        """Count the answer of an example that has a schema; one that is not JSON is left out."""
        schema = example.answer_schema
        if schema is None:
            return
        try:
            answer = example.answer_object()
        except ValueError:
            return
        key = content_hash(schema)
        self._schemas[key] = schema
        self._answers[key] += 1
        self._filled.setdefault(key, set()).update(_filled(answer, ""))

    def faults(self) -> Iterator[Fault]:
        """A warning for each schema of which some property is never filled.

        Properties of an object that no answer holds are not named beside the object itself.
        """
        for key, schema in self._schemas.items():
            names = list(dict.fromkeys(_unfilled(schema, schema, "", self._filled[key])))
            if names:
                title = schema.get("title")
                of = f" of {title}" if isinstance(title, str) else ""
                shown = first_of([repr(name) for name in names])
                yield Fault("field_untaught", f"{shown}{of}: filled in 0 of {self._answers[key]} rows")


def _filled(value: Any, path: str) -> Iterator[str]:
    """The paths of all values but nulls, such as ``tracks[].title``; the whole answer is the empty path."""
    if value is None:
        return
    yield path
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _filled(item, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list):
        for item in value:
            yield from _filled(item, f"{path}[]")


def _unfilled(root: Mapping[str, Any], node: Any, path: str, filled: set[str]) -> Iterator[str]:
    """The paths of the schema's properties that are not in ``filled``, but none inside another of them."""
    if path not in filled:
        return  # nothing is known of what is inside; the recursion ends where the answers end
    for branch in _branches(root, node, 0):
        if "items" in branch:
            yield from _unfilled(root, branch["items"], f"{path}[]", filled)
        properties = branch.get("properties")
        for name, child in properties.items() if isinstance(properties, Mapping) else ():
            inner = f"{path}.{name}" if path else str(name)
            if inner in filled:
                yield from _unfilled(root, child, inner, filled)
            else:
                yield inner


def _branches(root: Mapping[str, Any], node: Any, depth: int) -> Iterator[Mapping[str, Any]]:
    """A schema with its reference followed, and the branches of its unions."""
    node = follow_references(root, node)
    yield node
    for key in UNIONS if depth < _UNION_DEPTH else ():
        branches = node.get(key)
        for branch in branches if isinstance(branches, list) else ():
            yield from _branches(root, branch, depth + 1)
