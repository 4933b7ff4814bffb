"""What the grammar learns from training answers: longest lists, strings and objects, lists without repeats, copies.

Without them constrained generation can run to the token limit and end as broken JSON. A bound belongs to a place
in the schema, a JSON pointer such as ``#/properties/authors``, and is never tighter than the longest value in the
training answers at that place.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ...example import Example, canonical_json, content_hash
from ...json_schema import UNIONS, map_sub_schemas, pointer_part, resolve_pointer, sub_schemas, without_titles
from .annotations import without_annotations
from .closing import LEARNED_KEYS, UNENFORCED, closed_schema
from .drafts import by_reference_alone
from .grounding import GroundedSchema, PromptCopies, learn_grounding
from .learned_keys import LearnedKeys, learn_keys, sub_values, with_learned_keys
from .number_limits import translate_limits
from .string_formats import SHORT_FORMATS, translate_string
from .tool_turns import TURN_TEXT, is_turn_schema
from .written import is_by_text

__all__ = ["AnswerBounds", "AnswerTexts", "bounded_schema", "bounds_hit", "learn_bounds", "schema_key"]

_LIMITS = {"array": "maxItems", "string": "maxLength", "object": "maxProperties"}
_LEAST = {"array": "minItems", "string": "minLength", "object": "minProperties"}
_VALUE_KINDS: dict[type, str] = {list: "array", str: "string", dict: "object"}
# Type -> the keywords by which a schema without "type" describes values of the type.
_KEYWORDS = {
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("pattern", "format", "minLength", "maxLength"),
    "object": ("properties", "required", "additionalProperties", "patternProperties"),
}
_SELF_BOUNDED = ("enum", "const")
# A pattern that text of any length can match: not anchored at both ends, or with *, + or {n,}.
_ENDLESS = re.compile(r"^(?!\^)|(?<!\$)$|[*+]|,\}")
# Smallest bounds, chosen: where training has short values only, a longer one may still come.
_LEAST_CHARACTERS, _LEAST_ITEMS = 80, 8


class AnswerBounds(BaseModel):
    """The longest values of the training answers, by schema and place in it.

    Attributes:
        longest: ``schema_key`` of a schema -> JSON pointer into it -> items, characters or properties.
        learned_keys: ``schema_key`` of a schema -> JSON pointer into it -> keys that the schema allows there
            without naming them and that training answers have, with a schema of their values.
        distinct: Keys of the schemas whose training answers have lists of several objects, and no list with
            the same object twice.
        by_text: Keys of the schemas whose training answers have keys that may be left out in the text's order.
        grounded: ``schema_key`` of a schema -> places in its answers whose training values stand in the prompts.
        default_items: Bound of lists and free-form objects that no training answer fills; 32 by default
            (chosen).
        default_characters: Bound of strings that no training answer fills; 400 by default (chosen).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    longest: dict[str, dict[str, int]] = Field(default_factory=dict)
    learned_keys: dict[str, LearnedKeys] = Field(default_factory=dict)
    distinct: tuple[str, ...] = ()
    by_text: tuple[str, ...] = ()
    grounded: dict[str, GroundedSchema] = Field(default_factory=dict)
    default_items: int = Field(default=32, gt=0)
    default_characters: int = Field(default=400, gt=0)

    def limit(self, key: str, pointer: str, kind: str) -> int:
        """The bound at a place: twice the longest training value, at least 80 characters or 8 items.

        Places that no training answer fills get the default.

        Args:
            key: The schema's ``schema_key``.
            pointer: JSON pointer of the place in the schema.
            kind: ``string``, ``array`` or ``object``.

        Returns:
            Characters of a string, items of an array or properties of an object.
        """
        seen = self.longest.get(key, {}).get(pointer)
        if seen is None:
            return self.default_characters if kind == "string" else self.default_items
        return max(2 * seen, _LEAST_CHARACTERS if kind == "string" else _LEAST_ITEMS)

    def merged(self, older: AnswerBounds) -> AnswerBounds:
        """The bounds for answers that either of two trainings showed.

        Args:
            older: Bounds of the training before. What is grounded or distinct stays so where both say it, or the
                schema is in one of them only.
        """
        longest = {key: dict(places) for key, places in older.longest.items()}
        for key, places in self.longest.items():
            there = longest.setdefault(key, {})
            there.update({pointer: max(seen, there.get(pointer, 0)) for pointer, seen in places.items()})
        keys = {key: dict(places) for key, places in older.learned_keys.items()}
        for key, found in self.learned_keys.items():
            there_too = keys.setdefault(key, {})
            there_too.update({place: {**there_too.get(place, {}), **names} for place, names in found.items()})
        shared = self.longest.keys() & older.longest.keys()
        distinct = {*self.distinct, *older.distinct} - (({*self.distinct} ^ {*older.distinct}) & shared)
        grounded = {**older.grounded, **self.grounded}
        doubted = (self.grounded.keys() ^ older.grounded.keys()) & shared
        return self.model_copy(
            update={
                "longest": longest,
                "learned_keys": keys,
                "distinct": tuple(sorted(distinct)),
                "by_text": tuple(sorted({*self.by_text, *older.by_text})),
                "grounded": {key: places for key, places in grounded.items() if key not in doubted},
            }
        )


def schema_key(schema: Mapping[str, Any]) -> str:
    """Lookup key for a schema's bounds: content hash without titles, which prompts leave out too."""
    return content_hash(without_titles(schema))


class AnswerTexts:
    """The answers of examples by the ``schema_key`` of their schema.

    They are kept as text, since parsed they take several times the memory, and parsed once for each walk over them.
    ``copies``: by the same keys, what of the answers stands in the prompts, which are not kept.
    """

    def __init__(self) -> None:
        self.schemas: dict[str, Mapping[str, Any]] = {}
        self.by_text: set[str] = set()  # schemas with an answer whose keys are not in the schema's order
        self.copies: dict[str, PromptCopies] = {}
        self._texts: dict[str, list[str]] = {}

    def add(self, example: Example) -> str | None:
        """Keep an example's answer; returns the key of its schema, or None where it has no schema."""
        if example.answer_schema is None:
            return None
        key = schema_key(example.answer_schema)
        self.schemas.setdefault(key, example.answer_schema)
        text = example.answer_text()
        answer = json.loads(text)
        self._texts.setdefault(key, []).append(text)
        if key not in self.by_text and is_by_text(example, answer):
            self.by_text.add(key)
        self.copies.setdefault(key, PromptCopies()).add(example, answer)
        return key

    def parsed(self, key: str) -> Iterator[Any]:
        """The answers to one schema, in the order in which they were added."""
        return map(json.loads, self._texts[key])


def learn_bounds(examples: Iterable[Example] | AnswerTexts) -> AnswerBounds:
    """Learn the bounds from the answers of examples that have a schema; the others are skipped."""
    if isinstance(examples, AnswerTexts):
        answers = examples
    else:
        answers = AnswerTexts()
        for example in examples:
            answers.add(example)
    learned = {
        key: learn_keys(by_reference_alone(dict(schema)), answers.parsed(key))
        for key, schema in answers.schemas.items()
    }
    extended = {key: _with_keys(schema, learned[key]) for key, schema in answers.schemas.items()}
    longest = {key: _longest(schema, answers.parsed(key)) for key, schema in extended.items()}
    grounded = {
        key: learn_grounding(schema, partial(answers.parsed, key), answers.copies[key])
        for key, schema in extended.items()
    }
    return AnswerBounds(
        longest=longest,
        learned_keys={key: keys for key, keys in learned.items() if keys},
        distinct=tuple(sorted(key for key in answers.schemas if _all_distinct(answers.parsed(key)))),
        by_text=tuple(sorted(answers.by_text)),
        grounded={key: places for key, places in grounded.items() if places is not None},
    )


def _longest(schema: Mapping[str, Any], answers: Iterable[Any]) -> dict[str, int]:
    longest: dict[str, int] = {}
    for answer in answers:
        for pointer, _, value in _places(schema, answer):
            longest[pointer] = max(longest.get(pointer, 0), len(value))
    return longest


def _all_distinct(answers: Iterable[Any]) -> bool:
    """Whether lists of several objects are in the answers, and none has the same object twice."""
    is_any = False
    for found in (found for answer in answers for found in _lists(answer)):
        if sum(isinstance(item, dict) for item in found) > 1:
            is_any = True
            if len({canonical_json(item) for item in found}) < len(found):
                return False
    return is_any


def _lists(value: Any) -> Iterator[list[Any]]:
    if isinstance(value, list):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _lists(item)


def _with_keys(schema: Mapping[str, Any], learned: LearnedKeys) -> dict[str, Any]:
    return with_learned_keys(copy.deepcopy(by_reference_alone(dict(schema))), learned)


def bounded_schema(schema: Mapping[str, Any], key: str, bounds: AnswerBounds) -> dict[str, Any]:
    """Copy a schema and bound every unbounded list, string and free-form object in it.

    ``key``: the ``schema_key`` of the schema in training. In the copy, objects with named properties allow no
    others than those that training answers had there, and string formats and patterns that grammars do not
    support are removed; pydantic checks those.
    """
    extended = _translated(_with_keys(schema, bounds.learned_keys.get(key, {})))
    bounded: dict[str, Any] = without_annotations(extended)
    for pointer, kind, node in _to_bound(schema, bounded, key, bounds):
        node[_LIMITS[kind]] = _bound(bounds, key, pointer, kind, node)
    return closed_schema(bounded)


def bounds_hit(schema: Mapping[str, Any], key: str, bounds: AnswerBounds, answer: Any) -> list[str]:
    """The JSON pointers where an answer is as long as the added bound allows: it may have been cut there.

    Args as of ``bounded_schema``. A bound of the schema itself does not count.
    """
    extended = _with_keys(schema, bounds.learned_keys.get(key, {}))
    added = {
        pointer: _bound(bounds, key, pointer, kind, node)
        for pointer, kind, node in _to_bound(schema, _translated(extended), key, bounds)
    }
    values = _places(extended, answer)
    return sorted({pointer for pointer, _, value in values if len(value) >= added.get(pointer, math.inf)})


def _to_bound(
    schema: Mapping[str, Any], extended: dict[str, Any], key: str, bounds: AnswerBounds
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """As ``_unbounded``, without an agent's text of which nothing was learned: only the token limit ends that."""
    is_free = is_turn_schema(schema) and TURN_TEXT not in bounds.longest.get(key, {})
    return (found for found in _unbounded(extended, "#") if not (is_free and found[0] == TURN_TEXT))


def _bound(bounds: AnswerBounds, key: str, pointer: str, kind: str, node: Mapping[str, Any]) -> int:
    """The bound that is added at a place: never below twice the least that the schema asks for."""
    return max(bounds.limit(key, pointer, kind), 2 * int(node.get(_LEAST[kind], 0)))


def _translated(node: Any) -> Any:
    """Copy a schema without what grammars do not support; pydantic checks that later."""
    if not isinstance(node, Mapping):
        return node
    translated = map_sub_schemas(node, lambda _, child: _translated(child))
    learned = translated.get(LEARNED_KEYS)
    if isinstance(learned, Mapping):
        translated[LEARNED_KEYS] = {name: _translated(child) for name, child in learned.items()}
    if "string" in _kinds(node):
        translate_string(translated)
    translate_limits(translated)
    return translated


def _kinds(node: Mapping[str, Any]) -> list[str]:
    """Which of ``array``, ``string`` and ``object``, the types that a bound exists for, the values may have.

    Without a type, those whose keywords the schema has.
    """
    named = node.get("type")
    if named is None:
        return [kind for kind, keywords in _KEYWORDS.items() if any(keyword in node for keyword in keywords)]
    return [kind for kind in _LIMITS if kind in (named if isinstance(named, list) else [named])]


def _unbounded(node: Any, pointer: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield pointer, type and sub-schema of every place whose values have no longest."""
    if not isinstance(node, dict):
        return
    for kind in _kinds(node):
        free_form = kind != "object" or node.get("additionalProperties", False) not in (False, True)
        if free_form and _LIMITS[kind] not in node and not _bounds_itself(node):
            yield pointer, kind, node
    for keyword, place, child in sub_schemas(node):
        if keyword not in UNENFORCED:
            yield from _unbounded(child, f"{pointer}/{place}")
    for name, child in node.get(LEARNED_KEYS, {}).items():
        yield from _unbounded(child, f"{pointer}/{LEARNED_KEYS}/{pointer_part(name)}")


def _bounds_itself(node: Mapping[str, Any]) -> bool:
    """Whether a string's length is limited by its values, its format, or a pattern that ends."""
    pattern = node.get("pattern")
    if pattern is not None:
        return not _ENDLESS.search(str(pattern))
    return node.get("format") in SHORT_FORMATS or any(keyword in node for keyword in _SELF_BOUNDED)


def _places(root: Mapping[str, Any], answer: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield pointer, type and value of every list, string and object of an answer."""
    yield from _walk(root, root, "#", answer, set())


def _walk(
    root: Mapping[str, Any], node: Any, pointer: str, value: Any, seen: set[tuple[str, int]]
) -> Iterator[tuple[str, str, Any]]:
    """As ``_places``, for a value and the sub-schema ``node`` at ``pointer``.

    ``seen``: references with the values that they were followed for, each once: unions that hold each other would
    multiply with every level of the answer. All branches of a union are walked: a value counts at each branch whose
    type it has.
    """
    if not isinstance(node, Mapping):
        return
    reference = node.get("$ref")
    if isinstance(reference, str) and (reference, id(value)) not in seen:
        seen.add((reference, id(value)))
        yield from _walk(root, resolve_pointer(root, reference), reference, value, seen)
    for key in UNIONS:
        branches = node.get(key)
        for n, branch in enumerate(branches if isinstance(branches, list) else ()):
            yield from _walk(root, branch, f"{pointer}/{key}/{n}", value, seen)
    kind = _VALUE_KINDS.get(type(value))
    if kind in _kinds(node):
        yield pointer, str(kind), value
    for place, child, item in sub_values(node, value):
        yield from _walk(root, child, f"{pointer}/{place}", item, seen)
