"""Which properties of a schema the answers fill: a property that none fills is not learned.

Of an adapter that training goes on from, also which properties are new: only the rows that fill one teach it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...example import Example, content_hash
from ...json_schema import UNIONS, follow_references
from .problems import Fault, first_of

__all__ = ["FieldUse"]

_UNION_DEPTH = 12  # chosen: as for the order of keys; ends the walk of a union that contains itself


class FieldUse:
    """Counts, for each schema, the answers that fill a property; null and a missing key fill nothing.

    ``known``: schemas of a training that this one goes on from; empty: it begins anew.
    """

    def __init__(self, known: Sequence[Mapping[str, Any]] = ()) -> None:
        self._known = known
        self._schemas: dict[str, Mapping[str, Any]] = {}
        self._answers: Counter[str] = Counter()
        self._filled: dict[str, Counter[str]] = {}

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
        self._filled.setdefault(key, Counter()).update({*_filled(answer, "")})

    def faults(self) -> Iterator[Fault]:
        """A warning for each schema of which some property is never filled, and for each that has new properties.

        Properties of an object that no answer holds, or that is new, are not named beside the object itself.
        """
        for key, schema in self._schemas.items():
            title, filled, rows = schema.get("title"), self._filled[key], self._answers[key]
            of = f" of {title}" if isinstance(title, str) else ""
            names = list(dict.fromkeys(_named(schema, schema, "", filled)))
            if unfilled := [name for name in names if name not in filled]:
                shown = first_of([repr(name) for name in unfilled])
                yield Fault("field_untaught", f"{shown}{of}: filled in 0 of {rows} rows")
            if new := self._new(names, filled):
                shown = first_of([f"{name!r} (filled in {filled[name]} of {rows} rows)" for name in new])
                yield Fault("field_new", f"{shown}{of}: not in the schemas that the adapter was trained on")

    def _new(self, names: Sequence[str], filled: Mapping[str, int]) -> list[str]:
        """The filled ones of a schema's properties that no schema of the training before has."""
        if not self._known:
            return []
        known = {name for schema in self._known for name in _named(schema, schema, "", filled)}
        new = [name for name in names if name in filled and name not in known]
        return [name for name in new if not any(name.startswith((f"{o}.", f"{o}[")) for o in new)]


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


def _named(root: Mapping[str, Any], node: Any, path: str, filled: Mapping[str, int]) -> Iterator[str]:
    """The paths of the schema's properties, but none inside one that is not in ``filled``."""
    if path not in filled:
        return  # nothing is known of what is inside; the recursion ends where the answers end
    for branch in _branches(root, node, 0):
        if "items" in branch:
            yield from _named(root, branch["items"], f"{path}[]", filled)
        properties = branch.get("properties")
        for name, child in properties.items() if isinstance(properties, Mapping) else ():
            inner = f"{path}.{name}" if path else str(name)
            yield inner
            yield from _named(root, child, inner, filled)


def _branches(root: Mapping[str, Any], node: Any, depth: int) -> Iterator[Mapping[str, Any]]:
    """A schema with its reference followed, and the branches of its unions."""
    node = follow_references(root, node)
    yield node
    for key in UNIONS if depth < _UNION_DEPTH else ():
        branches = node.get(key)
        for branch in branches if isinstance(branches, list) else ():
            yield from _branches(root, branch, depth + 1)
