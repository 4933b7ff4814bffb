"""Training rows of windows: the sentences and paragraphs of a row's text, each with the items that stand in it.

Lists of small models end early: of a text with several items some are missing. Rows of windows teach complete lists
without another label: what stands in a part of the text is known from the row's own answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..example import Example, Message, compact_json
from ..json_schema import find_error
from ..local.schema.bounds import schema_key
from ..local.schema.list_items import ListRules, message_text, text_items
from ..local.schema.message_texts import without_schema_text
from ..local.schema.placed_items import ItemPlacer, PlacedItem, Span
from .splits import unit_hash

__all__ = [
    "bare_examples",
    "part_rows",
    "sentence_spans",
    "text_parts",
    "text_windows",
    "window_rows",
    "window_size",
]

_SIZES = (1, 2)  # sentences of a window, beside paragraphs
_NEARLY_ALL = (
    0.95  # chosen: of the items, those that stand inside one window, where texts are read by windows
)
_LONGEST_JOINED = 1000  # chosen: characters of a sentence that nothing is joined to
_LONGEST_FORM = 40  # chosen: characters of an abbreviation and what may follow it
# Chosen: of the window rows at least a third are left for texts without items, where there are that many.
_WITH_ITEMS = 2 / 3
_MOST_OF_A_TEXT = 200  # chosen: windows of one text; a book's would push out all others
_SHORT_FORMS = frozenset(
    # of references, titles and firms; where one ends a sentence, two sentences are one window
    "al approx ca cf ch co dr ed eds eq eqs et fig figs inc jr ltd mr mrs ms nr p pp prof sec sr st vol vs".split()  # noqa: SIM905
)
_LAST_WORD = re.compile(r"(\w[\w.]*)\.\W*$")
# Ends of sentences that the splitter does not see: blank lines, breaks before list items, Chinese full stops.
_MORE_ENDS = re.compile(
    r"\n[^\S\n]*\n+|\n(?=[ \t]*(?:[-*\u2022\u2013]|\d{1,3}[.)])[ \t])|(?<=[\u3002\uff01\uff1f])"
)
_BLANK_LINES = re.compile(r"\n\s*\n")


def sentence_spans(text: str) -> list[Span]:
    """The sentences of a text, in order; they cover all of it, the spaces between them included.

    LlamaIndex's sentence splitter, whose parts are joined again where it cut at an abbreviation or inside brackets.
    Empty for a blank text.
    """
    from llama_index.core.node_parser.text.utils import split_by_sentence_tokenizer

    split = split_by_sentence_tokenizer()
    spans: list[Span] = []
    for first, last in _blocks(text):
        sizes = [len(part) for part in split(text[first:last])]
        place = last - sum(sizes)  # the splitter leaves out leading spaces
        block: list[Span] = []
        for size in sizes:
            if block and _continues(text[slice(*block[-1])], text[place : place + size]):
                block[-1] = (block[-1][0], place + size)
            else:
                block.append((place, place + size))
            place += size
        spans += block
    return _covering(text, [first for first, _ in spans[1:]])


def text_windows(text: str, sentences: int) -> list[Span]:
    """Windows of so many sentences each, the last of fewer; they cover the text and do not overlap."""
    spans = sentence_spans(text)
    return [_joined(spans[n : n + sentences]) for n in range(0, len(spans), sentences)]


def text_parts(text: str, most_characters: int) -> list[Span]:
    """Parts of a long text: as many whole sentences each as fit; a longer sentence is a part of its own."""
    parts: list[Span] = []
    for first, last in sentence_spans(text):
        if parts and last - parts[-1][0] <= most_characters:
            parts[-1] = parts[-1][0], last
        else:
            parts.append((first, last))
    return parts


def part_rows(
    examples: Sequence[Example],
    rules: Mapping[str, ListRules],
    is_long: Callable[[Example], bool],
    most_characters: int,
) -> dict[str, list[Example]]:
    """Rows of the parts of long texts, by the id of the example; those that cannot be cut are not in it.

    A part's answer has the items that stand wholly inside, as of ``window_rows``; parts that cut an item, or of which
    it is unclear whether they hold one, are left out. ``examples``: all, from which the places of items are learned.
    """
    found: dict[str, list[Example]] = {}
    for group, own in _by_rules(examples, rules):
        for example, text, placed in _placed(group, own):
            if not is_long(example):
                continue
            items = [part.items(json.loads(example.answer_text())) for part in own.lists]
            rows = found.setdefault(example.id, [])
            for span in text_parts(text, most_characters):
                inside = [_inside(span, *part) for part in zip(items, placed, strict=True)]
                kept = tuple(part for part in inside if part is not None)
                window = _Window(example, _without_spaces(text, span), kept)
                if len(kept) == len(inside) and (row := _row(window, own)) is not None:
                    facts = {**row.metadata, "characters": list(window.span)}
                    rows.append(row.model_copy(update={"metadata": facts}))
    return found


def bare_examples(examples: Iterable[Example]) -> list[Example]:
    """The examples as serving is asked: without the schema's text of the transport that they were captured from."""
    return [
        example.model_copy(update={"messages": tuple(without_schema_text(example)), "schema_text": None})
        for example in examples
    ]


def window_rows(
    examples: Sequence[Example], rules: Mapping[str, ListRules], *, seed: int = 0
) -> list[Example]:
    """Training rows of windows of the examples' texts; the examples stay as they are.

    A window is a sentence, two, or a paragraph, in the place of the text in the same messages; its answer has the items
    that stand wholly inside. Windows that cut an item, or of which it is unclear whether they hold one, are left out.

    There are at most as many window rows as examples: training takes at most twice as long, and half of its rows are
    whole texts. Of those without items there are at most as many as keep the rows without items the smaller part.

    ``examples``: as of ``bare_examples``. ``rules``: by ``schema_key``. ``seed``: chooses the windows
    where there are more. A window row keeps document, sources and other facts of its example.
    """
    return [row for group, own in _by_rules(examples, rules) for row in _rows_of_windows(group, own, seed)]


def window_size(examples: Sequence[Example], rules: Mapping[str, ListRules]) -> int:
    """The fewest sentences a window, 1 or 2, that hold nearly all items of the examples; 0 where neither does.

    Arguments as of ``window_rows``.
    """
    placed = [
        (text, place)
        for group, own in _by_rules(examples, rules)
        for _, text, lists in _placed(group, own)
        for places in lists
        for place in places
    ]
    windows = {text: sentence_spans(text) for text, _ in placed}
    for size in _SIZES:
        inside = sum(
            any(place.is_inside(_joined(spans[n : n + size])) for n in range(0, len(spans), size))
            for text, place in placed
            for spans in [windows[text]]
        )
        if placed and inside >= _NEARLY_ALL * len(placed):
            return size
    return 0


@dataclass(frozen=True)
class _Window:
    """A window of an example's text, with the items of each list that stand in it."""

    example: Example
    span: Span
    lists: tuple[tuple[Any, ...], ...]

    @property
    def has_items(self) -> bool:
        return any(self.lists)

    def place(self, seed: int) -> float:
        """A number by which windows are chosen."""
        return unit_hash(seed, f"{self.example.id} {self.span}")


def _by_rules(
    examples: Iterable[Example], rules: Mapping[str, ListRules]
) -> Iterator[tuple[list[Example], ListRules]]:
    groups: dict[str, list[Example]] = {}
    for example in examples:
        key = None if example.answer_schema is None else schema_key(example.answer_schema)
        if key is not None and key in rules:
            groups.setdefault(key, []).append(example)
    return ((group, rules[key]) for key, group in groups.items())


def _rows_of_windows(examples: list[Example], rules: ListRules, seed: int) -> list[Example]:
    windows = sorted(_windows_of(examples, rules), key=lambda window: window.place(seed))
    filled = [window for window in windows if window.has_items]
    empty = [window for window in windows if not window.has_items]
    filled = filled[: max(1, round(_WITH_ITEMS * len(examples)))]
    rows_without = sum(not any(rules.items(json.loads(example.answer_text()))) for example in examples)
    most_empty = len(examples) - rows_without + len(filled) - rows_without
    empty = empty[: max(0, min(len(examples) - len(filled), len(filled), most_empty))]
    known = {example.id for example in examples}
    rows = []
    for window in (*filled, *empty):
        row = _row(window, rules)
        if row is not None and row.id not in known:
            known.add(row.id)
            rows.append(row)
    return rows


def _windows_of(examples: Iterable[Example], rules: ListRules) -> Iterator[_Window]:
    for example, text, placed in _placed(examples, rules):
        items = [part.items(json.loads(example.answer_text())) for part in rules.lists]
        for span in _spans(text):
            inside = [_inside(span, *part) for part in zip(items, placed, strict=True)]
            found = tuple(kept for kept in inside if kept is not None)
            if len(found) == len(inside):
                yield _Window(example, span, found)


def _placed(
    examples: Iterable[Example], rules: ListRules
) -> Iterator[tuple[Example, str, list[Sequence[PlacedItem]]]]:
    """The examples of whose lists all items are placed, with their texts and the places by list."""
    parts = [(example, found) for example in examples if (found := text_items(example, rules)) is not None]
    placer = ItemPlacer((text, [item for items in lists for item in items]) for _, (text, lists) in parts)
    for example, (text, lists) in parts:
        placed = [placer.placed(text, items) for items in lists]
        if all(places is not None for places in placed):
            yield example, text, [places or () for places in placed]


def _inside(span: Span, items: Sequence[Any], places: Sequence[PlacedItem]) -> tuple[Any, ...] | None:
    """The items in a window; None where it is unclear whether it holds one."""
    if any(place.is_unclear(span) for place in places):
        return None
    return tuple(item for item, place in zip(items, places, strict=True) if place.is_inside(span))


def _spans(text: str) -> list[Span]:
    """The windows of a text, without the spaces around them, and without the whole of it; of very many, every nth."""
    sentences = sentence_spans(text)
    found = [_joined(sentences[n : n + size]) for size in _SIZES for n in range(0, len(sentences), size)]
    found += _covering(text, [end.end() for end in _BLANK_LINES.finditer(text)])
    bare = dict.fromkeys(_without_spaces(text, span) for span in found)
    kept = [span for span in bare if span[0] < span[1] and span != _without_spaces(text, (0, len(text)))]
    return kept[:: -(-len(kept) // _MOST_OF_A_TEXT) or 1]


def _row(window: _Window, rules: ListRules) -> Example | None:
    """The window's training row; None where the schema refuses its answer."""
    example, (first, last) = window.example, window.span
    parts = rules.frame.split(message_text(example) or "")
    answer = rules.answer(window.lists)
    if parts is None or find_error(example.answer_schema or {}, answer) is not None:
        return None
    before, text, after = parts
    content = before + text[first:last] + after
    return example.model_copy(
        update={
            "messages": (
                *example.messages[:-1],
                example.messages[-1].model_copy(update={"content": content}),
            ),
            "answer": Message(role="assistant", content=compact_json(answer)),
        }
    )


def _blocks(text: str) -> list[Span]:
    return _covering(text, [end.end() for end in _MORE_ENDS.finditer(text)])


def _covering(text: str, cuts: Iterable[int]) -> list[Span]:
    """The parts of a text that is cut at these places; none of a blank text."""
    if not text.strip():
        return []
    return list(pairwise(sorted({0, *cuts, len(text)})))


def _continues(before: str, after: str) -> bool:
    """Whether the splitter cut inside of a sentence."""
    if len(before) > _LONGEST_JOINED:
        return False
    if after[:1].islower() or any(before.count(left) > before.count(right) for left, right in ("()", "[]")):
        return True
    word = _LAST_WORD.search(before[-_LONGEST_FORM:])
    return word is not None and (
        word[1].lower() in _SHORT_FORMS or "." in word[1] or (len(word[1]) == 1 and word[1].isupper())
    )


def _joined(spans: Sequence[Span]) -> Span:
    return spans[0][0], spans[-1][1]


def _without_spaces(text: str, span: Span) -> Span:
    part = text[slice(*span)]
    return span[0] + len(part) - len(part.lstrip()), span[1] - len(part) + len(part.rstrip())
