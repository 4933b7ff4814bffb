"""How a schema differs from those that an adapter was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..example import canonical_json
from ..json_schema import UNIONS, follow_references, without_titles
from ..local.schema.bounds import AnswerBounds, schema_key
from ..printable import package_logger

__all__ = ["UntrainedSchemas"]

_logger = package_logger(__name__)

_NESTING = {
    "properties",
    "items",
    "$defs",
    "definitions",
    "required",
    "$ref",
}
_SHOWN = 5  # chosen: a line that can be read


class UntrainedSchemas:
    """Logs once for each schema of a call that training did not show."""

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def warn_of(
        self,
        schema: Mapping[str, Any],
        name: str | None,
        trained: Sequence[Mapping[str, Any]],
        bounds: AnswerBounds,
    ) -> None:
        """Log a schema without bounds, with how it differs from the nearest trained one.

        ``name``: of the class. ``bounds``: of training; nothing is logged where they are of no schema.
        """
        key = schema_key(schema)
        if not bounds.longest or key in bounds.longest or key in self._warned:
            return
        self._warned.add(key)
        _logger.warning(
            "%s was not a schema of the training: the adapter's bounds do not hold for it, and its strings and "
            "lists get the default ones (bounds.default_characters, bounds.default_items). %s",
            name or "this schema",
            _difference(schema, trained),
        )


def _difference(schema: Mapping[str, Any], trained: Sequence[Mapping[str, Any]]) -> str:
    """Fields in which a schema differs from the nearest of the trained ones, as a sentence; empty without any.

    Args:
        schema: The schema of a call.
        trained: The schemas of training.
    """
    here = dict(_fields(schema))
    others = [dict(_fields(other)) for other in trained]
    if not others:
        return ""
    nearest = min(others, key=lambda other: len(here.items() ^ other.items()))
    parts = {
        "new": [name for name in here if name not in nearest],
        "missing": [name for name in nearest if name not in here],
        "changed": [name for name in here if name in nearest and here[name] != nearest[name]],
    }
    told = [f"{kind}: {_listed(names)}" for kind, names in parts.items() if names]
    return f"Against the nearest trained schema, {'; '.join(told) or 'the order of its fields differs'}."


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _fields(schema: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each field's path, as ``songs[].title``, with what the schema demands of it apart from nested fields."""
    plain = without_titles(schema)
    yield from _walk(plain, plain, "", frozenset(), required=True)


def _walk(
    root: Mapping[str, Any], node: Any, path: str, above: frozenset[str], *, required: bool
) -> Iterator[tuple[str, str]]:
    """As ``_fields``, for the sub-schema at ``path``; ``above``: references followed to it, a recursion's end."""
    if not isinstance(node, Mapping) or node.get("$ref") in above:
        return
    if isinstance(reference := node.get("$ref"), str):
        above, node = above | {reference}, {**follow_references(root, node), **_own(node)}
    yield path or "the object", canonical_json({"own": _own(node), "required": required})
    for name, child in node.get("properties", {}).items():
        place = f"{path}.{name}" if path else name
        yield from _walk(root, child, place, above, required=name in node.get("required", ()))
    yield from _walk(root, node.get("items"), f"{path}[]", above, required=True)
    for key in UNIONS:
        for n, branch in enumerate(node.get(key, ()), start=1):
            yield from _walk(root, branch, f"{path} ({key} {n})".strip(), above, required=True)


def _own(node: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a node that concern its value itself."""
    return {key: value for key, value in node.items() if key not in _NESTING and key not in UNIONS}
