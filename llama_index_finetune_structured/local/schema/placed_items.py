"""Where the items of an answer's lists stand in the text that they were read from."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...example import canonical_json
from ...json_schema import is_number

__all__ = ["ItemPlacer", "Leaf", "PlacedItem", "Span", "leaves"]

Span = tuple[int, int]
"""Start and end of a part of a text, in characters."""
Path = tuple[str, ...]
Leaf = tuple[Path, str | int | float]
"""The names that lead to a value inside of an item, list indices left out, and the value."""

# Chosen: nearly all values of a field stand in the text; the rest are slips of who wrote the answers.
_NEARLY_ALL = 0.9
_SHORT = 60  # characters of a value that identifies its item; longer ones are clauses, which items may share
_GAP = 200  # most characters between two parts of a value that stands in parts, as around a citation
_WORDS_A_PART = 4  # a value of so many words may stand in two parts, of twice as many in three
_MOST_STARTS = 64  # occurrences of its first word from which a value's parts are looked for
_SLACK = 20  # clusters that are longer than the tightest by so many characters count as equally tight
_WORD = re.compile(r"\S+")
# Scripts whose words have no spaces between them, or grow endings: Thai to Lao, Burmese, Khmer, kana, Han, Hangul.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff]"
)


@dataclass(frozen=True)
class PlacedItem:
    """An item of an answer and its place.

    ``span``: from its first value to its last in the text. ``mentions``: for each of its short values, all places where
    it stands.
    """

    span: Span
    mentions: tuple[tuple[Span, ...], ...]

    def is_inside(self, window: Span) -> bool:
        """Whether all of the item stands in a window."""
        return window[0] <= self.span[0] and self.span[1] <= window[1]

    def is_unclear(self, window: Span) -> bool:
        """Whether one cannot say if a window holds the item: it cuts it, or has its short values a second time."""
        if self.is_inside(window):
            return False
        if self.span[0] < window[1] and window[0] < self.span[1]:
            return True
        return all(_any_inside(places, window) for places in self.mentions)


def leaves(item: Any, path: Path = ()) -> Iterator[Leaf]:
    """The texts and numbers of an item; blank texts, booleans and nulls have no place in a text."""
    if isinstance(item, dict):
        for name, value in item.items():
            yield from leaves(value, (*path, name))
    elif isinstance(item, list):
        for value in item:
            yield from leaves(value, path)
    elif (isinstance(item, str) and item.strip()) or is_number(item):
        yield path, item


class ItemPlacer:
    """Finds the items of answers in their texts.

    A field counts where nearly all of its values stand in the text: verbatim, or, of long ones, in a few parts. Which
    these are is learned from ``rows``, texts with the items of their answers.

    Attributes:
        fields: Those that count, with the mean length of their values.
    """

    def __init__(self, rows: Iterable[tuple[str, Sequence[Any]]]) -> None:
        found: Counter[Path] = Counter()
        total: Counter[Path] = Counter()
        lengths: Counter[Path] = Counter()
        for text, items in rows:
            index = _TextIndex(text)
            for path, value in (leaf for item in items for leaf in leaves(item)):
                total[path] += 1
                lengths[path] += len(str(value))
                found[path] += bool(index.places(value))
        self.fields = {
            path: lengths[path] / count for path, count in total.items() if found[path] >= _NEARLY_ALL * count
        }

    def placed(self, text: str, items: Sequence[Any]) -> list[PlacedItem] | None:
        """The place of each item; None where one of them has none."""
        index = _TextIndex(text)
        placed: list[PlacedItem] = []
        used: set[tuple[str, Span]] = set()
        after = 0
        for item in items:
            values = {value for path, value in leaves(item) if path in self.fields}
            found = [(str(value), index.places(value)) for value in values]
            if not found or not all(places for _, places in found):
                return None
            name = canonical_json(item)
            core, span, mentions = _tightest(found, after, {place for other, place in used if other == name})
            used.add((name, core))
            placed.append(PlacedItem(span, mentions))
            after = core[0]
        return placed


class _TextIndex:
    """The places of values in a text, each looked for once."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._found: dict[tuple[type, str | int | float], tuple[Span, ...]] = {}

    def places(self, value: str | float) -> tuple[Span, ...]:
        """Where a value stands, in order; empty where it does not."""
        key = (type(value), value)
        if key not in self._found:
            self._found[key] = tuple(self._search(value))
        return self._found[key]

    def _search(self, value: str | float) -> list[Span]:
        if not isinstance(value, str):
            return sorted({place for form in _number_forms(value) for place in _verbatim(form, self._text)})
        return _verbatim(value.strip(), self._text) or _in_parts(value, self._text)


def _number_forms(value: float) -> set[str]:
    """How a number may be written: 2017, 2,017; 3.0 as 3."""
    forms = {str(value), f"{value:,}"}
    if isinstance(value, float) and value.is_integer():
        forms |= {str(int(value)), f"{int(value):,}"}
    return forms


def _verbatim(form: str, text: str) -> list[Span]:
    """Where the text has ``form`` and not as a part of a longer word or number."""
    found = []
    first = text.find(form)
    while first >= 0:
        last = first + len(form)
        if _is_whole(text, first, last):
            found.append((first, last))
        first = text.find(form, first + 1)
    return found


def _is_whole(text: str, first: int, last: int) -> bool:
    return not (
        (first > 0 and _are_joined(text[first - 1], text[first]))
        or (last < len(text) and _are_joined(text[last - 1], text[last]))
    )


def _are_joined(one: str, two: str) -> bool:
    """Whether two neighbouring characters are of one word or number; 2019a is a number and a letter."""
    if _UNSPACED.match(one) or _UNSPACED.match(two):
        return False
    return (one.isalpha() and two.isalpha()) or (one.isdigit() and two.isdigit())


def _in_parts(value: str, text: str) -> list[Span]:
    """Where the words of a value stand in order with little between some of them; at most one place.

    Line breaks between its words do not count as parts.
    """
    words = [(word.start(), word.end()) for word in _WORD.finditer(value)]
    if len(words) < 2:
        return []
    first_word = value[slice(*words[0])]
    attempts = (
        _parts_from(value, words, text, first) for first, _ in _verbatim(first_word, text)[:_MOST_STARTS]
    )
    found = [span for span in attempts if span is not None]
    return [min(found, key=lambda span: span[1] - span[0])] if found else []


def _parts_from(value: str, words: Sequence[Span], text: str, start: int) -> Span | None:
    """The span of a value whose first word stands at ``start``; None where the rest does not follow."""
    parts_left = len(words) // _WORDS_A_PART
    place, done = start, 0
    while True:
        run = _common_words(value, words[done:], text, place)
        if run == 0:
            return None
        place += words[done + run - 1][1] - words[done][0]
        done += run
        if done == len(words):
            return start, place
        word = value[slice(*words[done])]
        ahead = text[place : place + _GAP + len(word)]
        spaces = len(ahead) - len(ahead.lstrip())
        if text.startswith(word, place + spaces):
            place += spaces
            continue
        parts_left -= 1
        if parts_left < 0:
            return None
        starts = [place + first for first, _ in _verbatim(word, ahead)]
        if not starts:
            return None
        rest = words[done:]
        place = max(starts, key=lambda at: (_common_words(value, rest, text, at), -at))


def _common_words(value: str, words: Sequence[Span], text: str, place: int) -> int:
    """How many of the words stand at ``place`` as in the value, with the same spaces between them."""
    end = words[0][0]
    shift, count = place - end, 0
    for n, (_, last) in enumerate(words, start=1):
        if not text.startswith(value[end:last], end + shift):
            break
        end = last
        if _is_whole(text, place, end + shift):
            count = n
    return count


def _tightest(
    found: Sequence[tuple[str, Sequence[Span]]], after: int, taken: set[Span]
) -> tuple[Span, Span, tuple[tuple[Span, ...], ...]]:
    """The tightest cluster that has a place of each value: its short values, all of it, and the places of the short.

    Of equally tight ones, the first that does not begin before ``after`` and is not ``taken``.
    """
    short = [(text, places) for text, places in found if len(text) <= _SHORT] or list(found)
    longer = [places for text, places in found if len(text) > _SHORT] if len(short) < len(found) else []
    short.sort(key=lambda part: (len(part[1]), -len(part[0])))
    clusters = []
    for place in short[0][1]:
        core = _grown(place, [places for _, places in short[1:]])
        clusters.append((core, _grown(core, longer)))
    least = min(_length(span) for _, span in clusters)
    tight = [pair for pair in clusters if _length(pair[1]) <= least + _SLACK]
    free = [pair for pair in tight if pair[0] not in taken] or tight
    core, span = next((pair for pair in free if pair[0][0] >= after), free[0])
    return core, span, tuple(tuple(places) for _, places in short)


def _grown(span: Span, others: Iterable[Sequence[Span]]) -> Span:
    """The span with the place of each other value that makes it least longer."""
    for places in others:
        at = bisect_left(places, span)
        near = places[max(0, at - 1) : at + 2]
        span = min(((min(span[0], a), max(span[1], b)) for a, b in near), key=_length)
    return span


def _length(span: Span) -> int:
    return span[1] - span[0]


def _any_inside(places: Sequence[Span], window: Span) -> bool:
    at = bisect_left(places, (window[0], window[0]))
    return at < len(places) and places[at][1] <= window[1]
