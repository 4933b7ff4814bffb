"""Forbid the keys of objects that neither the schema names nor training answers showed.

JSON schema allows any further key where nothing forbids it. Where several schemas hold for one object (``allOf``,
``$ref`` with siblings, a union beside properties), each alone would forbid the keys of the others, so all keys are
listed and the rest is forbidden at one place. The listing also gives the keys their order in the grammar.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...json_schema import map_sub_schemas, resolve_pointer
from .objects import closing_place, describes_objects, key_names, members, union_keywords

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
_IN_PLACE = frozenset(("anyOf", "oneOf", "allOf"))
_DEEPEST = 8  # references inside references to the same object; chosen, ends the walk of a circular one


def closed_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a schema so that its objects have the keys that it names and those under ``LEARNED_KEYS`` only.

    Objects whose schema has ``additionalProperties``, or no properties, stay as open as they are.
    """
    closed: dict[str, Any] = _Closing(schema).closed(schema)
    return closed


class _Closing:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root

    def closed(self, node: Any) -> Any:
        """Copy a schema that is alone responsible for its values."""
        if not isinstance(node, Mapping):
            return node
        if closing_place(self._root, node) == "here":
            return self._closed_here(node)
        return map_sub_schemas(node, lambda keyword, c: c if keyword in UNENFORCED else self.closed(c))

    def _closed_here(self, node: Mapping[str, Any]) -> dict[str, Any]:
        schemas = members(self._root, node)
        unions = [
            (schema, keyword)
            for schema in schemas
            for keyword in union_keywords(schema)
            if describes_objects(self._root, {keyword: schema[keyword]})
        ]
        copy, names = self._opened(node), key_names(schemas)
        if len(unions) != 1 or unions[0][0] is not node:
            every = [schema for union in unions for schema in self._branch_members(*union)]
            return _listed(copy, [*schemas, *every])
        keyword = unions[0][1]
        branches = zip(node[keyword], copy[keyword], strict=True)
        copy[keyword] = [
            _listed(opened, [*schemas, *self._all_members(branch)])
            if isinstance(opened, dict) and opened.get("type", "object") == "object"
            else opened
            for branch, opened in branches
        ]
        return {"properties": {name: copy.get("properties", {}).get(name, True) for name in names}} | {
            key: value for key, value in copy.items() if key not in ("properties", LEARNED_KEYS)
        }

    def _all_members(self, node: Any, depth: int = 0) -> list[Mapping[str, Any]]:
        """The members of a schema and of all branches of its unions."""
        schemas = members(self._root, node)
        if depth == _DEEPEST:
            return schemas
        return schemas + [
            inner
            for schema in schemas
            for keyword in union_keywords(schema)
            for inner in self._branch_members(schema, keyword, depth + 1)
        ]

    def _branch_members(
        self, schema: Mapping[str, Any], keyword: str, depth: int = 0
    ) -> list[Mapping[str, Any]]:
        return [inner for branch in schema[keyword] for inner in self._all_members(branch, depth)]

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
        return self._opened(child, depth) if keyword in _IN_PLACE else self.closed(child)


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
