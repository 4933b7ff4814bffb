"""Where the values of an answer stand in the messages of its call."""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Container, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

from ..example import compact_json
from ..json_schema import is_number
from .answer_trust import Evidence, FieldTrust, Trust
from .json_spans import JsonPath
from .spellings import Spots, date_of, date_pattern, number_of, number_spots
from .text_folding import FoldedText

__all__ = ["with_evidence"]

_Span = tuple[int, int]
_Search = Callable[["_Content", int], Iterator[_Span]]
"""Spans of a value in a text, in order, from an offset on."""


def with_evidence(
    trust: Trust, contents: Sequence[str | None], copied: Container[JsonPath] = frozenset()
) -> Trust:
    """The trust with where its texts and numbers stand.

    Of several occurrences it is the next after that of the list's item before, else the first. Whole words count;
    of values that were copied parts of words do, if nothing else does.

    Args:
        trust: The trust.
        contents: Of the messages by index; None: no text of the caller.
        copied: Paths of values that the grammar let be copied only.
    """
    texts = [None if content is None else _Content(content) for content in contents]
    previous: dict[JsonPath, tuple[int, int]] = {}
    fields = list[FieldTrust]()
    for field in trust.fields:
        place = tuple(0 if isinstance(part, int) else part for part in field.path)
        spot = _spot(_searches(field.value, field.path in copied), texts, previous.get(place, (0, 0)))
        if spot is not None:
            previous[place] = spot.message, spot.end
            field = field.model_copy(update={"evidence": spot})
        fields.append(field)
    return trust.model_copy(update={"fields": tuple(fields)})


class _Content:
    """A message's text, with what is computed of it once."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def numbers(self) -> Spots:
        return number_spots(self.text)

    @cached_property
    def folded(self) -> FoldedText:
        return FoldedText(self.text)


def _spot(
    searches: Iterator[_Search], texts: Sequence[_Content | None], after: tuple[int, int]
) -> Evidence | None:
    """The first span from a message and an offset on, else the first, by the first search that finds any."""
    for search in searches:
        for first_message, first in dict.fromkeys((after, (0, 0))):
            for message, content in islice(enumerate(texts), first_message, None):
                if content is None:
                    continue
                begin = first if message == first_message else 0
                if (span := next(search(content, begin), None)) is not None:
                    start, end = span
                    return Evidence(text=content.text[start:end], message=message, start=start, end=end)
    return None


def _searches(value: Any, is_copied: bool) -> Iterator[_Search]:
    """The ways in which a value may stand in a text, the closest first; none for what is no text or number."""
    if isinstance(value, str) and value.strip():
        yield lambda content, begin: _whole(content.text, value, begin)
        yield lambda content, begin: (
            span
            for span in content.folded.spans(value)
            if span[0] >= begin and _is_whole(content.text, *span)
        )
        if (day := date_of(value)) is not None:
            pattern = date_pattern(day)
            yield lambda content, begin: (found.span() for found in pattern.finditer(content.text, begin))
        number = number_of(value)
    elif is_number(value):
        number = number_of(value)
    else:
        return
    if number is not None:
        yield lambda content, begin: _from(content.numbers.get(number, []), begin)
    if is_copied:
        text = value if isinstance(value, str) else compact_json(value)
        yield lambda content, begin: _anywhere(content.text, text, begin)


def _from(spans: Sequence[_Span], begin: int) -> Iterator[_Span]:
    return iter(spans[bisect_left(spans, (begin, 0)) :])


def _whole(text: str, value: str, begin: int) -> Iterator[_Span]:
    return (span for span in _anywhere(text, value, begin) if _is_whole(text, *span))


def _anywhere(text: str, value: str, begin: int) -> Iterator[_Span]:
    while (begin := text.find(value, begin)) >= 0:
        yield begin, begin + len(value)
        begin += 1


def _is_whole(text: str, start: int, end: int) -> bool:
    return not (_joined(text, start) or _joined(text, end))


def _joined(text: str, at: int) -> bool:
    """Whether the characters before and after an offset are of one word.

    In scripts that are written without spaces every character may begin a word.
    """
    if not 0 < at < len(text):
        return False
    before, after = text[at - 1], text[at]
    if before.isascii() and after.isascii():
        return before.isalnum() and after.isalnum()
    if unicodedata.combining(after):
        return True
    is_wide = any(unicodedata.east_asian_width(character) in "WF" for character in (before, after))
    return before.isalnum() and after.isalnum() and not is_wide
