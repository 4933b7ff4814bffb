"""The keys that an object may have by its schema, and their order, the same in training and in the grammar.

Several schemas can hold for one object: what a ``$ref`` names, the branches of ``allOf``, and one branch of each
``anyOf`` or ``oneOf``. They are its *members* here. Keys stand in this order: the members' properties, keys that a
member requires and none describes, keys learned from training answers (sorted), then keys by pattern and free keys.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, Literal

from jsonschema.protocols import Validator
from referencing.exceptions import Unresolvable

from ...example import canonical_json
from ...json_schema import pattern_matches, resolve_pointer, schema_validator
from ...panics import recursion_ends
from .text_order import by_text, optional_keys

__all__ = [
    "KeyOrder",
    "all_members",
    "closing_place",
    "describes_objects",
    "key_names",
    "matching_patterns",
    "members",
    "union_by_branch",
    "union_keywords",
]

_UNIONS = ("anyOf", "oneOf")
_KEYED = ("properties", "required", "patternProperties", "additionalProperties")
_NUMBER_LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_MOST_UNIONS = 3  # chosen: unions inside unions of one value; ends the walk of a union of itself
_DEEPEST = (
    8  # unions and references inside each other to the same object; chosen, ends the walk of a circular one
)
_MOST_MEMBERS = (
    64  # chosen: more than schemas written by hand have; ends the walk of one that refers to itself
)


def members(root: Any, node: Any) -> list[Mapping[str, Any]]:
    """The schemas that hold for every value of ``node``: itself, its reference and its ``allOf``, recursively."""
    found: list[Mapping[str, Any]] = []
    waiting = [node]
    while waiting and len(found) < _MOST_MEMBERS:
        schema = waiting.pop(0)
        if not isinstance(schema, Mapping) or any(schema is other for other in found):
            continue
        found.append(schema)
        inner = list(_list(schema, "allOf"))
        if isinstance(schema.get("$ref"), str):
            inner.insert(0, resolve_pointer(root, schema["$ref"]))
        waiting = inner + waiting
    return found


def union_keywords(node: Mapping[str, Any]) -> list[str]:
    """Which of ``anyOf`` and ``oneOf`` a schema has."""
    return [keyword for keyword in _UNIONS if _list(node, keyword)]


def key_names(schemas: list[Mapping[str, Any]]) -> list[str]:
    """The keys that the schemas name, in the order that answers have them."""
    described = [name for schema in schemas for name in _map(schema, "properties")]
    required = [name for schema in schemas for name in _list(schema, "required") if isinstance(name, str)]
    return list(dict.fromkeys([*described, *required]))


def all_members(root: Any, node: Any, depth: int = 0) -> list[Mapping[str, Any]]:
    """The members of a schema and of all branches of its unions that describe objects."""
    schemas = members(root, node)
    if depth == _DEEPEST:
        return schemas
    return schemas + [
        inner
        for schema, keyword in _object_unions(root, schemas)
        for branch in schema[keyword]
        for inner in all_members(root, branch, depth + 1)
    ]


def _object_unions(root: Any, schemas: list[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], str]]:
    """The unions of the schemas that describe objects, by schema and keyword."""
    return [
        (schema, keyword)
        for schema in schemas
        for keyword in union_keywords(schema)
        if any(describes_objects(root, branch) for branch in schema[keyword])
    ]


def union_by_branch(root: Any, node: Mapping[str, Any]) -> str | None:
    """The keyword of the one union of a schema, each branch of which lists the keys of its own objects.

    None where objects of all branches have one list of keys: there are several unions, or it is not the schema's own.
    """
    unions = _object_unions(root, members(root, node))
    return unions[0][1] if len(unions) == 1 and unions[0][0] is node else None


def closing_place(root: Any, node: Any) -> Literal["here", "inside", "nowhere"]:
    """Where further keys of the objects of a schema are forbidden: at the node, in one of its members, or nowhere.

    Inside: only the reference, one branch of ``allOf`` or one union of the schema describes objects.
    """
    if not isinstance(node, Mapping):
        return "nowhere"
    keyed = _keyed_parts(root, node)
    unions = _object_unions(root, [node])
    if _is_keyed(node):
        return "here"
    if not keyed and not unions:
        return "nowhere"
    return "inside" if len(keyed) + len(unions) == 1 else "here"


def _keyed_parts(root: Any, node: Mapping[str, Any]) -> list[Any]:
    """What describes objects of a schema's reference and of its ``allOf``."""
    inner = [resolve_pointer(root, node["$ref"])] if isinstance(node.get("$ref"), str) else []
    return [branch for branch in [*inner, *_list(node, "allOf")] if describes_objects(root, branch)]


def describes_objects(root: Any, node: Any, depth: int = 0) -> bool:
    """Whether a schema, one of its members or of its union's branches says which keys objects have."""
    branches = [
        branch
        for member in members(root, node)
        for keyword in union_keywords(member)
        for branch in member[keyword]
    ]
    return any(_is_keyed(member) for member in members(root, node)) or (
        depth < 8 and any(describes_objects(root, branch, depth + 1) for branch in branches)
    )


def _is_keyed(node: Mapping[str, Any]) -> bool:
    return any(keyword in node for keyword in _KEYED)


def matching_patterns(schema: Mapping[str, Any], name: str) -> list[str]:
    """The patterns of a schema's ``patternProperties`` that a key matches."""
    return [pattern for pattern in _map(schema, "patternProperties") if _matches(pattern, name)]


def _matches(pattern: str, name: str) -> bool:
    try:
        return pattern_matches(pattern, name, otherwise=False)
    except ValueError:  # it takes too long
        return False


def _by_pattern(schemas: list[Mapping[str, Any]], name: str) -> list[Any]:
    """The schemas of a key by ``patternProperties``."""
    return [schema["patternProperties"][p] for schema in schemas for p in matching_patterns(schema, name)]


class KeyOrder:
    """Which keys answers to a schema have, by the branches of unions that they fit, and in which order.

    ``text``: what the answers are about, in whose order keys stand that may be left out; None: in the schema's.
    ``by_text``: whether that changed the order of an object.
    """

    def __init__(self, root: Mapping[str, Any], text: str | None = None) -> None:
        self.root, self._text = root, text
        self.by_text = False

    def ordered(self, node: Any, value: Any) -> Any:
        """``value`` of the sub-schema ``node`` as the grammar spells it, the keys of every object in order."""
        if not isinstance(value, list | dict | float):
            return value
        chosen = self._chosen_members(node, value)
        constant = _constant(chosen, value)
        if constant is not None:
            return constant
        if isinstance(value, float):
            return _number(chosen, value)
        if isinstance(value, list):
            return [self.ordered(_item_schema(chosen, n), item) for n, item in enumerate(value)]
        names = self._by_text(chosen, [name for name in self._key_order(node, value) if name in value], value)
        learned = _learned(chosen, value)
        rest = [name for name in value if name not in {*names, *learned}]
        ordered = {name: self.ordered(_key_schema(chosen, name), value[name]) for name in names}
        ordered |= {name: _sorted(value[name]) for name in learned}
        return ordered | {name: self.ordered(_key_schema(chosen, name), value[name]) for name in rest}

    def _by_text(
        self, schemas: list[Mapping[str, Any]], names: list[str], value: Mapping[str, Any]
    ) -> list[str]:
        keyed = [schema for schema in schemas if "properties" in schema]
        optional = optional_keys(keyed[0]) if self._text is not None and len(keyed) == 1 else []
        ordered = by_text(names, optional, value, self._text or "") if optional else names
        self.by_text = self.by_text or ordered != names
        return ordered

    def learned_keys(self, node: Any, value: Mapping[str, Any]) -> list[str]:
        """The keys of an object that its schema neither names nor describes, though it allows them; sorted."""
        return _learned(self._chosen_members(node, value), value)

    def fitting(self, branches: list[Any], value: Any) -> list[int]:
        """Which branches of a union the value fits; all of them where it fits none."""
        if len(branches) < 2 or not isinstance(value, dict | list | float):
            return list(range(len(branches)))
        return [n for n, branch in enumerate(branches) if self._fits(branch, value)] or list(
            range(len(branches))
        )

    def _chosen_members(self, node: Any, value: Any, depth: int = 0) -> list[Mapping[str, Any]]:
        """The members of ``node`` that hold for ``value``, with one branch of each union.

        Of the branches that the value fits, the one that names most of its keys.
        """
        found: list[Mapping[str, Any]] = []
        for member in members(self.root, node):
            found.append(member)
            for keyword in union_keywords(member) if depth < _MOST_UNIONS else ():
                found += self._chosen_branch(member[keyword], value, depth + 1)[1]
        return found

    def _chosen_branch(
        self, branches: list[Any], value: Any, depth: int
    ) -> tuple[Any, list[Mapping[str, Any]]]:
        """The branch of a union for ``value``, with its members that hold for it."""
        fitting = [branches[n] for n in self.fitting(branches, value)]
        chosen = [(branch, self._chosen_members(branch, value, depth)) for branch in fitting]
        return max(chosen, key=lambda found: _covered(found[1], value))

    def _key_order(self, node: Any, value: Any, depth: int = 0) -> list[str]:
        """The keys of an object of ``node`` in the order of the closed schema's lists."""
        schemas = members(self.root, node)
        if not schemas or depth == _DEEPEST:
            return key_names(schemas)
        keyword = union_by_branch(self.root, node)
        branch = None if keyword is None else self._chosen_branch(node[keyword], value, 1)[0]
        if closing_place(self.root, node) != "inside":
            if keyword is None:
                return key_names(all_members(self.root, node))
            # First what is listed beside the union, then what its branch lists.
            return key_names(schemas) + key_names([*schemas, *all_members(self.root, branch)])
        if keyword is None:
            branch = _keyed_parts(self.root, node)[0]
        return self._key_order(branch, value, depth + 1)

    def _fits(self, branch: Any, value: Any) -> bool:
        try:
            with recursion_ends():
                return bool(self._validator.evolve(schema=branch).is_valid(value))
        except (Unresolvable, AttributeError, TypeError, KeyError, ValueError, RecursionError, re.error):
            return False  # a reference that leads to no schema, or a pattern that Python cannot compile

    @functools.cached_property
    def _validator(self) -> Validator:
        return schema_validator(self.root)


def _constant(schemas: list[Mapping[str, Any]], value: Any) -> Any:
    """The member of an ``enum``, or the ``const``, that equals the value, as the grammar spells it; else None."""
    constants = [allowed for schema in schemas for allowed in _list(schema, "enum")]
    constants += [schema["const"] for schema in schemas if "const" in schema]
    given = canonical_json(_whole(value)) if constants else ""
    return next((spelled for spelled in map(_whole, constants) if canonical_json(spelled) == given), None)


def _whole(value: Any) -> Any:
    """The value with whole numbers as integers."""
    if isinstance(value, dict):
        return {name: _whole(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _number(schemas: list[Mapping[str, Any]], number: float) -> float:
    """A float as an integer where the grammar knows only that: in an integer's place, and 0 where there are limits."""
    types = [kind for schema in schemas if "type" in schema for kind in _types(schema)]
    is_integer = "integer" in types and "number" not in types
    is_limited_zero = number == 0 and any(limit in schema for schema in schemas for limit in _NUMBER_LIMITS)
    return int(number) if number.is_integer() and (is_integer or is_limited_zero) else number


def _types(schema: Mapping[str, Any]) -> list[str]:
    named = schema["type"]
    return named if isinstance(named, list) else [named]


def _learned(schemas: list[Mapping[str, Any]], value: Mapping[str, Any]) -> list[str]:
    if not any("properties" in schema for schema in schemas):
        return []
    if any("additionalProperties" in schema for schema in schemas):
        return []
    names = key_names(schemas)
    return sorted(name for name in value if name not in names and not _by_pattern(schemas, name))


def _covered(schemas: list[Mapping[str, Any]], value: Any) -> int:
    return len(value.keys() & set(key_names(schemas))) if isinstance(value, dict) else 0


def _item_schema(schemas: list[Mapping[str, Any]], index: int) -> Any:
    """The schema of a list's item."""
    found = []
    for schema in schemas:
        items = schema.get("items")
        first = [*_list(schema, "prefixItems")] or (items if isinstance(items, list) else [])
        rest = schema.get("additionalItems") if isinstance(items, list) else items
        found.append(first[index] if index < len(first) else rest)
    return _all_of(found)


def _key_schema(schemas: list[Mapping[str, Any]], name: str) -> Any:
    """The schema of a key's value."""
    named = [_map(schema, "properties")[name] for schema in schemas if name in _map(schema, "properties")]
    named += _by_pattern(schemas, name)
    return _all_of(named or [schema.get("additionalProperties") for schema in schemas])


def _all_of(schemas: list[Any]) -> Any:
    described = [schema for schema in schemas if isinstance(schema, Mapping)]
    return described[0] if len(described) == 1 else {"allOf": described} if described else None


def _sorted(value: Any) -> Any:
    """A value that no schema describes, with sorted keys: so the grammar of learned keys has them."""
    if isinstance(value, dict):
        return {name: _sorted(value[name]) for name in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def _list(node: Mapping[str, Any], keyword: str) -> list[Any]:
    value = node.get(keyword)
    return value if isinstance(value, list) else []


def _map(node: Mapping[str, Any], keyword: str) -> Mapping[str, Any]:
    value = node.get(keyword)
    return value if isinstance(value, Mapping) else {}
