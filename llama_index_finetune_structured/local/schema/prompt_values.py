"""Numbers and days of a prompt's texts: where a value that is one, or holds one, may begin and end."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache

from ...written_values.dates import date_spots
from ...written_values.kinds import WRITTEN_NUMBERS, WrittenKind
from ...written_values.readings import TOKEN, western_digits, written_numbers

__all__ = ["cuts_number", "is_one_number", "number_parts", "values_alone"]

_DIGITS = r"\d+(?:[.,'’٬٫]\d+)*"
_WHOLE_NUMBER = re.compile(r"\d+(?:\D\d{3})*")
_ONE_NUMBER = re.compile(rf"\D{{0,6}}{_DIGITS}\D{{0,6}}")  # with its sign and its currency
_DATE = r"\d{1,2}(?P<sign>[./-])\d{1,2}(?P=sign)(?:\d{4}|\d\d)|\d{4}(?P<dash>[./-])\d\d?(?P=dash)\d\d?"
_MOMENT = rf"{_DATE}|\d{{1,2}}:\d\d(?::\d\d)?"
_SIGNS = "-\u2212()"
_ALONE = re.compile(rf"[{_SIGNS}]?[.,]?\d(?:.*\d)?[{_SIGNS}]?")
_NUMBER_PARTS = re.compile(rf"(?<![\w./:-])(?P<moment>{_MOMENT})(?![\w:]|[./-]\d)|{_DIGITS}")


def is_one_number(text: str) -> bool:
    """Whether a text holds one number: with a sign or currency of up to six characters, or grouped by spaces."""
    if _ONE_NUMBER.fullmatch(text) is not None:
        return True
    return TOKEN.fullmatch(western_digits(text.strip(_SIGNS))) is not None


def cuts_number(text: str, begin: int, end: int) -> bool:
    """Whether what stands at these characters is a part of a longer number, of a date or of a time."""
    begins, ends, _ = number_parts(text)
    return begin in begins or end in ends


@lru_cache(maxsize=64)
def number_parts(text: str) -> tuple[frozenset[int], frozenset[int], frozenset[int]]:
    """Where no value that holds one number may begin, where none may end, and where no integer may begin.

    Inside a number and its separators, in a date or time written in digits at its beginning and end too; and for
    integers, in numbers with decimals: one that began there could not end. Separators of thousands are no decimals.
    """
    begins, ends, decimals = set[int](), set[int](), set[int]()
    for found in _NUMBER_PARTS.finditer(text):
        is_moment = found["moment"] is not None
        begins.update(range(found.start() + (not is_moment), found.end()))
        ends.update(range(found.start() + 1, found.end() + is_moment))
        if not is_moment and not _WHOLE_NUMBER.fullmatch(found[0]):
            decimals.update(range(max(0, found.start() - 1), found.end()))  # with a sign before it
    return frozenset(begins), frozenset(ends), frozenset(decimals)


@lru_cache(maxsize=64)
def values_alone(text: str, kind: WrittenKind) -> Mapping[int, frozenset[int]]:
    """Where the numbers or days of a text begin, and where each may end; a number with its sign or brackets."""
    plain = western_digits(text)
    spots = (
        _numbers_alone(text, plain) if kind.name in WRITTEN_NUMBERS else date_spots(plain, None, kind.locales)
    )
    found = dict[int, set[int]]()
    for start, end in spots:
        found.setdefault(start, set()).add(end)
    return {start: frozenset(ends) for start, ends in found.items()}


def _numbers_alone(text: str, plain: str) -> Iterator[tuple[int, int]]:
    begins, ends, _ = number_parts(text)
    for start, end, _ in written_numbers(plain):
        if start not in begins and end not in ends and _ALONE.fullmatch(text[start:end]):
            yield start, end
