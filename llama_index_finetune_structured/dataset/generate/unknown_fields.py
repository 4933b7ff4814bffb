"""The fields of labels that a schema does not have, and that a class ignores in silence."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .schema_branches import branches

__all__ = ["UnknownFields"]


@dataclass
class _Unknown:
    where: str
    known: tuple[str, ...]
    count: int = 0


class UnknownFields:
    """What was found in the labels of one call."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        self._found: dict[str, _Unknown] = {}

    def note(self, answer: Any, where: str, is_same: Callable[[Any], bool]) -> None:
        """Note the fields without which the answer ``is_same``: a class may read other names than its schema has."""
        for path, known in _unknown(answer, self._schema, self._schema, ()):
            name = ".".join(part for part in path if isinstance(part, str))
            if name in self._found or is_same(_without(answer, path)):
                self._found.setdefault(name, _Unknown(where, known)).count += 1

    def problems(self, name: str) -> Iterator[tuple[str, str]]:
        """Place and message of each; ``name``: of the schema."""
        for path, found in self._found.items():
            meant = difflib.get_close_matches(path.rpartition(".")[2].casefold(), found.known, n=1)
            hint = f"did you mean {meant[0]!r}?" if meant else f"its fields are {', '.join(found.known)}"
            labels = "1 label" if found.count == 1 else f"{found.count} labels"
            yield found.where, f"{path!r} is no field of {name}, and was not read ({labels}); {hint}"


_Path = tuple[str | int, ...]


def _unknown(
    value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], path: _Path
) -> Iterator[tuple[_Path, tuple[str, ...]]]:
    """The paths of the fields that no branch of the schema has, with those that it has there."""
    choices = branches(schema, root)
    if isinstance(value, list):
        for item in (choice["items"] for choice in choices if isinstance(choice.get("items"), Mapping)):
            for number, inner in enumerate(value):
                yield from _unknown(inner, item, root, (*path, number))
    if not isinstance(value, dict):
        return
    objects = [choice for choice in choices if isinstance(choice.get("properties"), Mapping)]
    is_open = any(choice.get("additionalProperties") or choice.get("patternProperties") for choice in choices)
    known = {name: inner for choice in objects for name, inner in choice["properties"].items()}
    for name, inner in value.items():
        if name in known:
            yield from _unknown(inner, known[name], root, (*path, name))
        elif objects and not is_open:
            yield (*path, name), tuple(known)


def _without(value: Any, path: _Path) -> Any:
    first, *rest = path
    if isinstance(value, list):
        return [_without(item, tuple(rest)) if number == first else item for number, item in enumerate(value)]
    if not rest:
        return {name: inner for name, inner in value.items() if name != first}
    return {name: _without(inner, tuple(rest)) if name == first else inner for name, inner in value.items()}
