"""Votes: several JSON answers to one question, merged into one answer."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ...example import canonical_json
from ...json_schema import sub_schemas

__all__ = ["Tag", "merged_answer", "tags_of", "vote"]

Key = TypeVar("Key", bound=Hashable)
Tag = tuple[str, str]
"""Name and JSON value of a property that tells branches of a union."""

_ALIKE = 0.5  # chosen: two objects of a list are versions of one where more than half of their content agrees
_MOST_PAIRS = 100_000  # chosen: comparing so many pairs of items takes about a second
_WORD = re.compile(r"\w+")


def vote(answers: Sequence[Any], schema: Mapping[str, Any], fits: Callable[[Any], bool]) -> Any:
    """One answer from several to the same question, of which the first counts most.

    The merged answer; where it does not fit, the one in which lists are not merged item by item (a pair of
    coordinates is no list of items); where that does not fit either, the first answer.

    Args:
        answers: JSON values, at least one.
        schema: Their JSON schema.
        fits: Whether a value fits the schema.
    """
    tags = tags_of(schema)
    for merge_lists in (True, False):
        merged = merged_answer(answers, tags=tags, merge_lists=merge_lists)
        if fits(merged):
            return merged
    return answers[0]


def tags_of(schema: Mapping[str, Any]) -> frozenset[Tag]:
    """The properties that are a constant somewhere in the schema, as those are that tell branches of a union."""
    return frozenset(_tags(schema))


def _tags(schema: Mapping[str, Any]) -> Iterator[Tag]:
    waiting: list[Any] = [schema]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, Mapping):
            continue
        properties = node.get("properties")
        for name, child in properties.items() if isinstance(properties, Mapping) else ():
            options = child.get("enum", [child.get("const")]) if isinstance(child, Mapping) else []
            if isinstance(options, list) and len(options) == 1 and isinstance(options[0], str | int):
                yield name, _identity(options[0])
        waiting += [child for _, _, child in sub_schemas(node)]


def merged_answer(
    answers: Sequence[Any], *, tags: frozenset[Tag] = frozenset(), merge_lists: bool = True
) -> Any:
    """The value that most answers have, place by place; an even vote is decided by the first answer.

    Of scalars, the most frequent one. Objects are merged field by field, and have the keys that more than half of
    them have. Lists have the items that stand in more than half of them, in the order of the first list that has
    them: equal items are one, and so are objects that agree in more than half of their content, which are merged.
    Where kinds differ (text and list), only values of the most frequent kind count; where tags differ, only
    objects with the most frequent one.

    Args:
        answers: JSON values, at least one.
        tags: Properties that tell branches of a union: where they differ, objects with the most frequent one count.
        merge_lists: Whether lists are merged item by item. If not, the most frequent list is taken whole.
    """
    return _Merge(tags, merge_lists).of(answers)


@dataclass(frozen=True)
class _Merge:
    """As ``merged_answer``."""

    tags: frozenset[Tag]
    merge_lists: bool

    def of(self, values: Sequence[Any]) -> Any:
        """The merged value of one place."""
        best, votes = _most_frequent(values, _identity)
        if 2 * votes > len(values):
            return best
        kind, _ = _most_frequent([_kind(value) for value in values], str)
        values = [value for value in values if _kind(value) == kind]
        if kind == "object":
            return self._object(values)
        if kind == "list" and self.merge_lists:
            return self._list(values)
        return _most_frequent(values, _identity)[0]

    def _object(self, objects: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        for name in sorted({name for name, _ in self.tags}):
            objects = self._of_one_branch(name, objects)
        merged = dict[str, Any]()
        for key in _in_order([list(obj) for obj in objects]):
            if _stands([key in obj for obj in objects]):
                merged[key] = self.of([obj[key] for obj in objects if key in obj])
        return merged

    def _of_one_branch(self, name: str, objects: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """The objects with the most frequent value of a tag; all where a value is none of a branch."""
        if not all(name in obj and (name, _identity(obj[name])) in self.tags for obj in objects):
            return objects
        branch, _ = _most_frequent([_identity(obj[name]) for obj in objects], str)
        return [obj for obj in objects if _identity(obj[name]) == branch]

    def _list(self, lists: Sequence[Sequence[Any]]) -> list[Any]:
        slots = _joined(_equal_items(lists), len(lists))
        standing = [slot for slot in slots if slot.stands(len(lists))]
        places = [
            sorted((slot.items[n][0], number) for number, slot in enumerate(standing) if n in slot.items)
            for n in range(len(lists))
        ]  # of each answer's list: (place, slot)
        merged, seen = list[Any](), set[str]()
        for number in _in_order([[number for _, number in answer] for answer in places]):
            slot = standing[number]
            value = self.of([item for _, (_, item) in sorted(slot.items.items())])
            if slot.mixed and _identity(value) in seen:
                continue  # versions of one item that were merged to another item of the list
            seen.add(_identity(value))
            merged.append(value)
        return merged


@dataclass
class _Slot:
    """An item of the merged list. ``items``: number of an answer -> place in its list, and the item there.

    ``mixed``: its items are not equal.
    """

    items: dict[int, tuple[int, Any]]
    mixed: bool = False

    def stands(self, answers: int) -> bool:
        return _stands([n in self.items for n in range(answers)])


def _equal_items(lists: Sequence[Sequence[Any]]) -> list[_Slot]:
    """A slot for each group of equal items; equal items of one list are in different slots."""
    slots: dict[tuple[str, int], _Slot] = {}
    for n, items in enumerate(lists):
        seen = Counter[str]()
        for place, item in enumerate(items):
            identity = _identity(item)
            slots.setdefault((identity, seen[identity]), _Slot({})).items[n] = (place, item)
            seen[identity] += 1
    return list(slots.values())


def _joined(slots: Sequence[_Slot], answers: int) -> list[_Slot]:
    """The slots, those joined whose objects are alike and of different answers, most alike first.

    Slots that already stand take in versions of their item, so that these form no second one, and are not joined to
    each other: their answers overlap.
    """
    loose = [n for n, slot in enumerate(slots) if not slot.stands(answers)]
    if len(loose) * len(slots) > _MOST_PAIRS:
        return list(slots)
    pairs = sorted(_alike_pairs(slots, set(loose)))
    home = list(range(len(slots)))  # the slot that each was joined to
    joined: dict[int, _Slot] = dict(enumerate(slots))
    for _, first, second in pairs:
        one, other = home[first], home[second]
        if one == other or joined[one].items.keys() & joined[other].items.keys():
            continue
        joined[one] = _Slot({**joined[one].items, **joined.pop(other).items}, mixed=True)
        home = [one if number == other else number for number in home]
    return list(joined.values())


def _alike_pairs(slots: Sequence[_Slot], loose: set[int]) -> Iterator[tuple[float, int, int]]:
    """Negative likeness and numbers of each pair of slots with objects that are alike: sorted, the most alike first."""
    items = [next(iter(slot.items.values()))[1] for slot in slots]
    objects = [number for number, item in enumerate(items) if isinstance(item, dict)]
    for one, other in itertools.combinations(objects, 2):
        if (one in loose or other in loose) and not slots[one].items.keys() & slots[other].items.keys():
            alike = _likeness(items[one], items[other])
            if alike > _ALIKE:
                yield -alike, one, other


def _likeness(one: Any, other: Any) -> float:
    """Share of the content that two values have in common, from 0 to 1; fields that are empty in both do not count."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [
            key for key in {**one, **other} if not (_is_empty(one.get(key)) and _is_empty(other.get(key)))
        ]
        both = [_likeness(one[key], other[key]) for key in keys if key in one and key in other]
        return sum(both) / len(keys) if keys else 1.0
    if isinstance(one, str) and isinstance(other, str) and one != other:
        return _overlap(_WORD.findall(one.lower()), _WORD.findall(other.lower()))
    if isinstance(one, list) and isinstance(other, list):
        return _overlap(map(_identity, one), map(_identity, other))
    return float(_identity(one) == _identity(other))


def _overlap(one: Iterable[str], other: Iterable[str]) -> float:
    """Twice what two collections have in common, by the number of all."""
    first, second = Counter(one), Counter(other)
    return 2 * (first & second).total() / max(1, first.total() + second.total())


def _is_empty(value: Any) -> bool:
    return value is None or value in ("", [], {})


def _stands(has: Sequence[bool]) -> bool:
    """Whether more than half have it, or half of them with the first."""
    votes = 2 * sum(has)
    return votes > len(has) or (votes == len(has) and has[0])


def _most_frequent(values: Sequence[Any], identity: Callable[[Any], str]) -> tuple[Any, int]:
    """The most frequent value, of equally frequent ones the first, and how often it occurs."""
    identities = [identity(value) for value in values]
    counts = Counter(identities)
    most = max(counts.values())
    return next((value, most) for value, name in zip(values, identities, strict=True) if counts[name] == most)


def _identity(value: Any) -> str:
    """Text that is the same for equal JSON values: 1 and 1.0 are, 1 and true are not, keys have no order."""
    return canonical_json(_plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _kind(value: Any) -> str:
    return "object" if isinstance(value, dict) else "list" if isinstance(value, list) else "scalar"


def _in_order(sequences: Iterable[Sequence[Key]]) -> list[Key]:
    """All keys: those of the first sequence, then each other one behind its predecessor in its own sequence."""
    order = list[Key]()
    for sequence in sequences:
        place = 0
        for key in sequence:
            if key in order:
                place = order.index(key) + 1
            else:
                order.insert(place, key)
                place += 1
    return order
