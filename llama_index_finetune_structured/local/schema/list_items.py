"""Rules for lists that are read from a text window by window, learned from training answers.

For answers that are nothing but lists, such as ``{"citations": [...]}`` or a list itself. The rules say where the text
stands in the last user message, which lists there are, and when two windows list the same item.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ...example import Example, canonical_json
from ...json_schema import find_error
from .bounds import schema_key
from .placed_items import ItemPlacer, Span, leaves
from .text_frames import TextFrame, possible_frames

__all__ = ["ItemList", "ListRules", "learn_list_rules", "message_text", "text_items"]

# Chosen: what fewer items have in common may be chance.
_LEAST_ITEMS, _LEAST_PAIRS = 20, 30
_NEARLY_ALL = 0.9  # chosen: of the rows with items, those in which all are placed
_NO_WORSE = (
    0.97  # chosen: a narrow frame is taken where it holds the items of nearly as many rows as a wider one
)
_MOST_FIELDS = 3  # chosen: a key of more fields is as good as the whole item


class ItemList(BaseModel):
    """A list of the answer.

    Attributes:
        name: Property of the answer that holds it. None: the answer is the list.
        key: Fields of an item that no training answer has twice in one list. None: items are compared whole.
        empty: How training answers without items write it: as a ``list``, as ``null``, or ``absent``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = None
    key: tuple[str, ...] | None = None
    empty: Literal["list", "null", "absent"] = "list"

    def items(self, answer: Any) -> list[Any]:
        """The items in an answer; none where it has no such list.

        Args:
            answer: An answer, parsed.
        """
        found = answer if self.name is None else answer.get(self.name) if isinstance(answer, dict) else None
        return found if isinstance(found, list) else []

    def joined(self, answers: Iterable[Any]) -> list[Any]:
        """The items of several answers, each once, the first of equal ones.

        Args:
            answers: Parsed answers, in order.
        """
        first: dict[str, Any] = {}
        for answer in answers:
            for item in self.items(answer):
                first.setdefault(_identity(item, self.key), item)
        return list(first.values())


class ListRules(BaseModel):
    """How answers to one schema are read window by window.

    Attributes:
        frame: Where the text stands in the last user message.
        lists: The lists that an answer consists of.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    frame: TextFrame
    lists: tuple[ItemList, ...]

    @classmethod
    def learn(cls, examples: Iterable[Example]) -> ListRules | None:
        """Learn the rules from examples of one schema.

        Args:
            examples: Training examples, without schema text in their messages.

        Returns:
            The rules. None where answers are not lists alone, with 20 items or more, whose values stand in the text
            in nearly all rows, or where the schema allows no empty list.
        """
        rows = [
            (text, json.loads(example.answer_text()))
            for example in examples
            if (text := message_text(example)) is not None
        ]
        lists = _lists([answer for _, answer in rows])
        bare = cls(frame=TextFrame(), lists=lists or ())
        with_items = [(text, items) for text, answer in rows if (items := bare.items(answer))]
        if lists is None or sum(len(items) for _, items in with_items) < _LEAST_ITEMS:
            return None
        found = _frame(with_items)
        if found is None:
            return None
        frame, placer = found
        fields = sorted(
            (path[0] for path in placer.fields if len(path) == 1),
            key=lambda name: (placer.fields[(name,)], name),
        )
        answers = [answer for _, answer in rows]
        keyed = (part.model_copy(update={"key": _key(part, answers, fields)}) for part in lists)
        return cls(frame=frame, lists=tuple(keyed))

    def windows(self, message_text: str, cut: Callable[[str], Sequence[Span]]) -> list[str] | None:
        """The content of the last user message for each window; None where it cannot be cut.

        Args:
            message_text: The content of the last user message.
            cut: Gives the windows of a text, such as ``text_windows`` with a number of sentences.
        """
        parts = self.frame.split(message_text)
        if parts is None:
            return None
        before, text, after = parts
        windows = [window for first, last in cut(text) if (window := text[first:last].strip())]
        return [before + window + after for window in windows] or None

    def items(self, answer: Any) -> list[Any]:
        """All items of an answer, list after list.

        Args:
            answer: An answer, parsed.
        """
        return [item for part in self.lists for item in part.items(answer)]

    def answer(self, lists: Sequence[Sequence[Any]]) -> Any:
        """An answer with these items, empty lists as training answers write them.

        Args:
            lists: The items of each list, in the order of ``self.lists``.
        """
        if self.lists[0].name is None:
            return list(lists[0])
        return {
            part.name: list(items) if items or part.empty == "list" else None
            for part, items in zip(self.lists, lists, strict=True)
            if items or part.empty != "absent"
        }

    def merged(self, answers: Sequence[Any]) -> Any:
        """One answer from those to the windows: their lists joined in order, each item once.

        Args:
            answers: The parsed answers, in the order of the windows.
        """
        return self.answer([part.joined(answers) for part in self.lists])


def learn_list_rules(examples: Iterable[Example]) -> dict[str, ListRules]:
    """The rules for each schema whose training answers are lists of parts of a text, by its ``schema_key``.

    ``examples``: as for ``ListRules.learn``.
    """
    groups: dict[str, list[Example]] = {}
    for example in examples:
        if example.answer_schema is not None:
            groups.setdefault(schema_key(example.answer_schema), []).append(example)
    learned = {key: ListRules.learn(rows) for key, rows in groups.items()}
    return {
        key: rules
        for key, rules in learned.items()
        if rules is not None and _may_be_empty(groups[key][0], rules)
    }


def message_text(example: Example) -> str | None:
    """The text of the last message where it is the user's, and text alone."""
    last = example.messages[-1]
    return last.content if last.role == "user" and isinstance(last.content, str) else None


def text_items(example: Example, rules: ListRules) -> tuple[str, list[list[Any]]] | None:
    """The text of a row and the items of each of its lists; None for a message of another form."""
    content = message_text(example)
    parts = None if content is None else rules.frame.split(content)
    if parts is None:
        return None
    answer = json.loads(example.answer_text())
    return parts[1], [part.items(answer) for part in rules.lists]


def _may_be_empty(example: Example, rules: ListRules) -> bool:
    """Whether the schema allows an answer without items: a grammar that does not would make windows invent some."""
    empty = rules.answer([()] * len(rules.lists))
    return find_error(example.answer_schema or {}, empty) is None


def _lists(answers: Sequence[Any]) -> tuple[ItemList, ...] | None:
    """The lists that all answers consist of; None where there is anything else in one, or no item in any."""
    if all(isinstance(answer, list) for answer in answers):
        found: dict[str | None, list[Any]] = {None: list(answers)}
    elif all(isinstance(answer, dict) for answer in answers):
        names = dict.fromkeys(name for answer in answers for name in answer)
        found = {name: [answer.get(name, ...) for answer in answers] for name in names}
    else:
        return None
    for values in found.values():
        items = [item for value in values if isinstance(value, list) for item in value]
        are_lists = all(value is None or value is ... or isinstance(value, list) for value in values)
        if not (items and are_lists and all(any(leaves(item)) for item in items)):
            return None
    return tuple(ItemList(name=name, empty=_empty(values)) for name, values in found.items()) or None


def _empty(values: Sequence[Any]) -> Literal["list", "null", "absent"]:
    """How a list without items is written, most often; as a list where none is empty."""
    nulls, absent = sum(value is None for value in values), sum(value is ... for value in values)
    lists = sum(value == [] for value in values)
    if lists >= max(nulls, absent):
        return "list"
    return "null" if nulls >= absent else "absent"


def _frame(rows: Sequence[tuple[str, list[Any]]]) -> tuple[TextFrame, ItemPlacer] | None:
    """The narrowest frame that holds the items of nearly all its rows; None where no frame does."""
    best: tuple[int, TextFrame, ItemPlacer] | None = None
    for frame in possible_frames([text for text, _ in rows]):
        texts = [(parts[1], items) for text, items in rows if (parts := frame.split(text)) is not None]
        placer = ItemPlacer(texts)
        placed = sum(placer.placed(text, items) is not None for text, items in texts)
        is_enough = placed >= _NEARLY_ALL * len(texts) and 2 * placed >= len(rows)
        if is_enough and (best is None or best[0] < _NO_WORSE * placed):
            best = placed, frame, placer
    return None if best is None else best[1:]


def _key(part: ItemList, answers: Sequence[Any], fields: Sequence[str]) -> tuple[str, ...] | None:
    """The smallest set of fields, those with short values first, that no answer has twice in this list."""
    lists = [items for answer in answers if len(items := part.items(answer)) > 1]
    pairs = sum(len(items) * (len(items) - 1) // 2 for items in lists)
    if pairs < _LEAST_PAIRS or not all(isinstance(item, dict) for items in lists for item in items):
        return None
    return next(
        (key for key in _field_sets(fields) if all(_are_different(items, key) for items in lists)), None
    )


def _field_sets(fields: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for size in range(1, _MOST_FIELDS + 1):
        yield from combinations(fields, size)


def _are_different(items: Sequence[Any], key: tuple[str, ...]) -> bool:
    return len({_identity(item, key) for item in items}) == len(items)


def _identity(item: Any, key: tuple[str, ...] | None) -> str:
    """Text that is the same for two items where they are one."""
    if key is None or not isinstance(item, dict):
        return canonical_json(item)
    return canonical_json([item.get(field) for field in key])
