"""Which values of answers stand verbatim in the texts of the prompt, learned from training rows.

A place in the answer is grounded where nearly all training values were copied from the messages. The grammar then
lets a model write there what stands in the messages of the call, and the few values that training had otherwise.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from ...example import Example
from ...written_values.answers import has_written_values
from ...written_values.kinds import WrittenKind
from .answer_places import AnswerLeaf, LeafKind, PlacePath, answer_leaves, leaf_paths, written_kind_at
from .message_texts import caller_texts, system_texts, without_schema_text
from .prompt_values import cuts_number, is_one_number, values_alone

__all__ = [
    "GroundedPlace",
    "GroundedRule",
    "GroundedSchema",
    "Grounding",
    "PromptCopies",
    "grounded_leaves",
    "learn_grounding",
    "occurrences",
    "rule_at",
]

# Chosen by what rules from part of the shared data sets refuse of the rest: nothing but values that are new in 1 of
# 100 places. With fewer values too little is known, and with more new exceptions too many answers would be refused.
_LEAST_VALUES = 20
_LEAST_SHARE = 2  # at least one value of so many is found: others repeat, such as "unknown"
_NEW_EXCEPTIONS = 50  # values, of which one may be an exception seen once: the rate of new ones (Good-Turing)
_CUT_WORDS = 200  # at most one of so many values is a part of a word, where whole words are required
_POOLED_SHARE = 0.9  # chosen: of the strings at places with enough values, so that rarer ones count as copied
_MOST_EXCEPTIONS, _MOST_CHARACTERS = 32, 4000  # of a place; chosen: small in a card
# How a value stands in the texts, as bits: anywhere, from the beginning of a word, to the end of one, both; so with no
# part of a longer number, of a date or of a time; and so with nothing but a value of the kind that the schema says.
_ANYWHERE, _FROM_START, _TO_END, _WHOLE, _NUMBER, _ALONE = 1, 2, 4, 8, 16, 32
_VARIANTS = (_WHOLE, _FROM_START, _TO_END, _ANYWHERE)  # the strictest first
_ALL = 2 * _ALONE - 1
_WITH_SYSTEM = 6  # bits by which those are shifted that count system messages too


class GroundedRule(BaseModel):
    """What may stand at a grounded place: parts of the prompt's texts, and ``others``.

    Attributes:
        starts: Whether a value begins where a word does (a number: where no digit stands before it).
        ends: Whether it ends where a word does.
        numbers: Whether it holds one number, which is no part of a longer one, of a date or of a time.
        integers: Whether training has integers alone there: then they begin at no number with decimals.
        alone: The kind of value that it is, with nothing else: a number with at most its sign, such as ``1 834,40`` of
            ``2 x 1 834,40 EUR``, or a day. Where the schema has one as it is written, and training nothing else.
        others: Values of training that stood in no text; of numbers, their JSON.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    starts: bool = False
    ends: bool = False
    numbers: bool = False
    integers: bool = False
    alone: WrittenKind | None = None
    others: tuple[str, ...] = ()


class GroundedPlace(BaseModel):
    """A place in the answer, and the places inside it.

    Attributes:
        string: Rule of strings; None: they are not grounded.
        number: Rule of numbers.
        properties: Places of the named properties of an object.
        values: Place of the values of an object whose keys are data.
        items: Place of the items of a list.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    string: GroundedRule | None = None
    number: GroundedRule | None = None
    properties: dict[str, GroundedPlace] = Field(default_factory=dict)
    values: GroundedPlace | None = None
    items: GroundedPlace | None = None

    def inside(self, key: str) -> GroundedPlace | None:
        """The place of an object's property."""
        return self.properties.get(key, self.values)


def rule_at(place: GroundedPlace | None, kind: LeafKind) -> GroundedRule | None:
    """The rule of a place's strings or numbers."""
    return None if place is None else place.string if kind == "string" else place.number


class GroundedSchema(BaseModel):
    """The grounded places of one schema's answers.

    Attributes:
        answer: The place of the whole answer.
        system_messages: Whether system messages are among the texts: they differ between training rows. Equal ones
            are instructions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    answer: GroundedPlace
    system_messages: bool = False


class Grounding(NamedTuple):
    """What the answer to one call may copy: the rules of its schema, and the texts of its messages."""

    schema: GroundedSchema
    texts: tuple[str, ...]


class PromptCopies:
    """How the strings and numbers of answers to one schema stand in their prompts: two bytes each."""

    def __init__(self) -> None:
        self.answers: list[array[int]] = []
        self._systems: set[tuple[str, ...]] = set()

    def add(self, example: Example, answer: Any) -> None:
        """Add an example, with its answer parsed."""
        messages = without_schema_text(example)
        texts, system = caller_texts(messages), system_texts(messages)
        if len(self._systems) < 2:
            self._systems.add(tuple(system))
        kinds = _written_kinds(example.answer_schema or {}, answer)
        self.answers.append(
            array(
                "H",
                (_copied(leaf, kinds.get(leaf.path), texts, system) for leaf in answer_leaves(answer, ())),
            )
        )

    @property
    def system_messages(self) -> bool:
        """Whether system messages differ between the examples."""
        return len(self._systems) > 1


def _written_kinds(schema: Mapping[str, Any], answer: Any) -> dict[tuple[str | int, ...], WrittenKind]:
    """The kinds of the values of an answer that are as they are written, by their paths."""
    if not has_written_values(schema):
        return {}
    leaves = zip(answer_leaves(answer, ()), leaf_paths(schema, [schema], answer, ()), strict=True)
    kinds = ((leaf.path, place is not None and written_kind_at(schema, place)) for leaf, place in leaves)
    return {path: kind for path, kind in kinds if kind}


def _copied(leaf: AnswerLeaf, kind: WrittenKind | None, texts: Sequence[str], system: Sequence[str]) -> int:
    caller = _standing(leaf, kind, texts)
    return caller | (caller | (_standing(leaf, kind, system) if caller != _ALL else 0)) << _WITH_SYSTEM


def _standing(leaf: AnswerLeaf, kind: WrittenKind | None, texts: Sequence[str]) -> int:
    found, is_number = 0, is_one_number(leaf.text)
    most = _WHOLE | _NUMBER * is_number | _ALONE * (kind is not None)
    for text in texts:
        for begin, starts, ends in occurrences(text, leaf):
            found |= _ANYWHERE | _FROM_START * starts | _TO_END * ends
            if starts and ends:
                end = begin + len(leaf.text)
                found |= _WHOLE | _NUMBER * (is_number and not cuts_number(text, begin, end))
                found |= _ALONE * (kind is not None and end in values_alone(text, kind).get(begin, ()))
            if found & most == most:
                return found
    return found


def occurrences(text: str, leaf: AnswerLeaf, begin: int = 0) -> Iterator[tuple[int, bool, bool]]:
    """Yield where a value stands in a text from ``begin`` on, and whether it begins and ends where a word does.

    Of a number, where no digit stands next to it. An empty value stands nowhere.
    """
    value, joins = leaf.text, str.isalnum if leaf.kind == "string" else str.isdecimal
    if not value:
        return
    while (begin := text.find(value, begin)) >= 0:
        end = begin + len(value)
        starts = begin == 0 or not (joins(text[begin - 1]) and joins(text[begin]))
        yield begin, starts, end == len(text) or not (joins(text[end - 1]) and joins(text[end]))
        begin += 1


def grounded_leaves(place: GroundedPlace | None, value: Any) -> Iterator[tuple[AnswerLeaf, GroundedRule]]:
    """The strings and numbers of an answer at grounded places, with their rules, in the order of its JSON."""
    if place is None:
        return
    for leaf in answer_leaves(value, ()):
        inner: GroundedPlace | None = place
        for part in leaf.path:
            inner = inner and (inner.items if isinstance(part, int) else inner.inside(part))
        if (rule := rule_at(inner, leaf.kind)) is not None:
            yield leaf, rule


def learn_grounding(
    schema: Mapping[str, Any], answers: Callable[[], Iterable[Any]], copies: PromptCopies
) -> GroundedSchema | None:
    """The grounded places of the answers to a schema; None where there are none.

    ``answers``: gives the answers that were added to ``copies``, in that order, at each call.
    """
    shift = _WITH_SYSTEM if copies.system_messages else 0
    counts = dict[tuple[PlacePath, LeafKind], Counter[int]]()
    for place, leaf, copied in _places(schema, answers(), copies):
        if leaf.text:
            counts.setdefault(place, Counter())[copied >> shift & _ALL] += 1
    needed = {place: found for place, count in counts.items() if (found := _required(count))}
    others, no_integers = {place: Counter[str]() for place in needed}, set[tuple[PlacePath, LeafKind]]()
    for place, leaf, copied in _places(schema, answers(), copies):
        if leaf.kind == "string" or not leaf.text.lstrip("-").isdecimal():
            no_integers.add(place)
        if place in needed and not copied >> shift & needed[place]:
            others[place][leaf.text] += 1
            if len(others[place]) > _MOST_EXCEPTIONS:
                del needed[place]
    rules = dict[tuple[PlacePath, LeafKind], GroundedRule]()
    for place, variant in needed.items():
        if _are_few(others[place], counts[place].total()):
            whole = variant == _WHOLE
            numbers = whole and all(not copied & _WHOLE or copied & _NUMBER for copied in counts[place])
            alone = whole and all(not copied & _WHOLE or copied & _ALONE for copied in counts[place])
            rules[place] = GroundedRule(
                starts=whole or variant == _FROM_START, ends=whole or variant == _TO_END, numbers=numbers,
                integers=numbers and place not in no_integers, others=tuple(sorted(others[place])),
                alone=written_kind_at(schema, place[0]) if alone else None,
            )  # fmt: skip
    if not rules:
        return None
    rules |= _rare_places(counts, rules)
    return GroundedSchema(answer=_tree(rules), system_messages=copies.system_messages)


def _required(count: Counter[int]) -> int:
    """The strictest way in which enough of the values stand in the texts; 0 where too few do."""

    def found(variant: int) -> int:
        return sum(number for copied, number in count.items() if copied & variant)

    anywhere, total = found(_ANYWHERE), count.total()
    if anywhere < max(_LEAST_VALUES, total / _LEAST_SHARE):
        return 0
    return next(variant for variant in _VARIANTS if (anywhere - found(variant)) * _CUT_WORDS <= total)


def _rare_places(
    counts: Mapping[tuple[PlacePath, LeafKind], Counter[int]],
    rules: Mapping[tuple[PlacePath, LeafKind], GroundedRule],
) -> dict[tuple[PlacePath, LeafKind], GroundedRule]:
    """Rules of strings at places with few values, all of them found, where nearly all other strings are copied."""
    known = {place: count.total() for place, count in counts.items() if place[1] == "string"}
    often = sum(total for total in known.values() if total >= _LEAST_VALUES)
    if sum(known.get(place, 0) for place in rules) < max(_POOLED_SHARE * often, _LEAST_VALUES):
        return {}
    whole = sum(known.get(place, 0) for place, rule in rules.items() if rule.starts and rule.ends)
    found = {
        place: count
        for place, count in counts.items()
        if place in known and known[place] < _LEAST_VALUES and all(copied & _ANYWHERE for copied in count)
    }
    are_whole = {place for place, count in found.items() if all(copied & _WHOLE for copied in count)}
    if 2 * whole < often:  # words are cut elsewhere, so they may be here
        are_whole = set()
    return {place: GroundedRule(starts=place in are_whole, ends=place in are_whole) for place in found}


def _are_few(others: Counter[str], total: int) -> bool:
    new = sum(number == 1 for text, number in others.items() if text)
    return new * _NEW_EXCEPTIONS <= total and sum(map(len, others)) <= _MOST_CHARACTERS


def _tree(rules: Mapping[tuple[PlacePath, LeafKind], GroundedRule]) -> GroundedPlace:
    tree: dict[str, Any] = {}
    for (path, kind), rule in rules.items():
        node = tree
        for keyword, name in path:
            node = node.setdefault(keyword, {})
            node = node.setdefault(name, {}) if keyword == "properties" else node
        node[kind] = rule
    return GroundedPlace.model_validate(tree)


def _places(
    schema: Mapping[str, Any], answers: Iterable[Any], copies: PromptCopies
) -> Iterator[tuple[tuple[PlacePath, LeafKind], AnswerLeaf, int]]:
    """Place, value and copies of every string and number that its schema leaves free."""
    for answer, copied in zip(answers, copies.answers, strict=True):
        leaves = zip(answer_leaves(answer, ()), copied, strict=True)
        for (leaf, byte), path in zip(leaves, leaf_paths(schema, [schema], answer, ()), strict=True):
            if path is not None:
                yield (path, leaf.kind), leaf, byte
