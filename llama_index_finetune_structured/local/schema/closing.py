"""Forbid the keys of objects that neither the schema names nor training answers showed.

JSON schema allows any further key where nothing forbids it. Where several schemas hold for one object (``allOf``,
``$ref`` with siblings, a union beside properties), each alone would forbid the keys of the others, so all keys are
listed and the rest is forbidden at one place. The listing also gives the keys their order in the grammar.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...example import canonical_json
from ...json_schema import UNIONS, map_sub_schemas, resolve_pointer
from .objects import all_members, closing_place, describes_objects, key_names, members, union_by_branch

__all__ = ["LEARNED_KEYS", "UNENFORCED", "closed_schema"]

LEARNED_KEYS = "x-learned-keys"
"""Keyword of a bounded schema before it is closed: keys of training answers with the schemas of their values."""
UNENFORCED = frozenset(
    (
        *("not", "if", "then", "else", "contains", "dependentSchemas", "dependencies", "propertyNames"),
        *("unevaluatedItems", "unevaluatedProperties"),
    )
)
"""Keywords whose schemas a grammar does not enforce; they are copied as they are."""
_DEEPEST = 8  # references inside references to the same object; chosen, ends the walk of a circular one


def closed_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a schema so that its objects have the keys that it names and those under ``LEARNED_KEYS`` only.

    Objects whose schema has ``additionalProperties``, or no properties, stay as open as they are.
    """
    closing = _Closing(schema)
    closed: dict[str, Any] = closing.closed(schema)
    if closing.definitions:
        return {**closed, "$defs": {**closed.get("$defs", {}), **closing.definitions}}
    return closed


class _Closing:
    """``definitions``: name -> closed schema, of what open copies hold more than once or inside itself."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._closed: dict[str, dict[str, Any]] = {}  # by the text of the schema in ``root``
        self.definitions: dict[str, dict[str, Any]] = {}

    def closed(self, node: Any) -> Any:
        """Copy a schema that is alone responsible for its values."""
        if not isinstance(node, Mapping):
            return node
        if closing_place(self._root, node) == "here":
            return self._closed_once(node)
        return map_sub_schemas(node, lambda keyword, c: c if keyword in UNENFORCED else self.closed(c))

    def _closed_once(self, node: Mapping[str, Any]) -> dict[str, Any]:
        """The closed copy of a schema; a reference to it where it is met again, perhaps inside itself."""
        key = canonical_json(node)
        if '"$ref"' not in key:
            return self._closed_here(node)
        if key in self._closed:
            name = f"x-closed-{list(self._closed).index(key)}"
            self.definitions[name] = self._closed[key]
            return {"$ref": f"#/$defs/{name}"}
        self._closed[key] = closed = dict[str, Any]()
        closed.update(self._closed_here(node))
        return closed

    def _closed_here(self, node: Mapping[str, Any]) -> dict[str, Any]:
        schemas = members(self._root, node)
        copy, names = self._opened(node), key_names(schemas)
        keyword = union_by_branch(self._root, node)
        if keyword is None:
            return _listed(copy, all_members(self._root, node))
        branches = zip(node[keyword], copy[keyword], strict=True)
        copy[keyword] = [
            _listed(opened, [*schemas, *all_members(self._root, branch)])
            if isinstance(opened, dict) and opened.get("type", "object") == "object"
            else opened
            for branch, opened in branches
        ]
        return {"properties": {name: copy.get("properties", {}).get(name, True) for name in names}} | {
            key: value for key, value in copy.items() if key not in ("properties", LEARNED_KEYS)
        }

    def _opened(self, node: Any, depth: int = 0) -> Any:
        """Copy one of several schemas of the same values: closed inside, not closed itself.

        A definition is closed where it stands alone, so here its reference is replaced by an open copy.
        """
        if not isinstance(node, Mapping):
            return node
        copy = map_sub_schemas(node, lambda keyword, child: self._opened_child(keyword, child, depth))
        copy.pop(LEARNED_KEYS, None)
        reference = copy.get("$ref")
        if isinstance(reference, str) and depth < _DEEPEST:
            target = resolve_pointer(self._root, reference)
            if describes_objects(self._root, target):
                del copy["$ref"]
                inner = self._opened(target, depth + 1)
                copy["allOf"] = [*copy.get("allOf", []), {k: v for k, v in inner.items() if k != "$defs"}]
        return copy

    def _opened_child(self, keyword: str, child: Any, depth: int) -> Any:
        if keyword in UNENFORCED:
            return child
        return self._opened(child, depth) if keyword in UNIONS else self.closed(child)


def _listed(node: dict[str, Any], schemas: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The schema with all keys of ``schemas`` listed, further ones forbidden unless one of these allows them."""
    own = node.get("properties", {})
    listing = {name: own.get(name, True) for name in key_names(schemas)}
    learned = {name: child for schema in schemas for name, child in schema.get(LEARNED_KEYS, {}).items()}
    listing |= {name: learned[name] for name in sorted(learned) if name not in listing}
    rest = {key: value for key, value in node.items() if key not in ("properties", LEARNED_KEYS)}
    closes = any("properties" in schema for schema in schemas)
    if closes and not any("additionalProperties" in schema for schema in schemas):
        rest["additionalProperties"] = False
        patterns = [pattern for schema in schemas for pattern in schema.get("patternProperties", {})]
        if patterns:
            rest["patternProperties"] = dict.fromkeys(patterns, True) | node.get("patternProperties", {})
    return {"properties": listing, **rest} if listing or closes else rest
