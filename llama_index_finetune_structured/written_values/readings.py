"""What a written text may mean, and what the other texts of a document tell about it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from decimal import Decimal
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ConfigurationError, MissingDependencyError

if TYPE_CHECKING:
    from babel import Locale

__all__ = [
    "TOKEN",
    "DocumentTexts",
    "Reading",
    "locale_of",
    "number_values",
    "western_digits",
    "without_marks",
    "written_numbers",
]

_BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_BREAKS = "\t\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_GROUPS = ",.'’ "
_NUMBER = re.compile(r"(?<![\w.,'’])\d+(?:[.,'’]\d+)+(?![\w]|[.,'’]\d)")
TOKEN = re.compile(
    r"(?<![\d.,'’])(?:[1-9]\d{0,2}(?: \d{3})+(?!\d)(?:[.,]\d+)?(?![.,'’]\d)|(?:[.,](?=\d))?\d+(?:[.,'’]\d+)*)(?!\d)"
)
"""Digits of one number, with the separators between them."""
_TWO_DECIMALS = re.compile(r"\d+[.,]\d\d")
_DATE = re.compile(r"(?<![\w./-])(\d{1,2})([./-])(\d{1,2})\2(?:\d{4}|\d\d)(?![\w]|[./-]\d)")
_MARKS = 6  # characters; chosen: a currency between a number and its sign
_SIGN_BEFORE = re.compile(r"(?:(?<!\w)[-\u2212]|\()[^\d\n()\u2212-]*$")
_SIGN_AFTER = re.compile(r"[-\u2212](?!\w)")
_CLOSING = re.compile(r"[^\d\n()]*\)")
_AFTER_NOON = re.compile(r"(?<![\d.,:])(?:1[3-9]|2[0-3])(?::|\s?h\s?)[0-5]\d(?![\d:])")
_MOST_GROUPS = 5  # chosen: of three digits; enough for any amount, and few parts of a long row of numbers
_SEVERAL = 4  # chosen: as many numbers with two decimals are amounts
_FEW = (
    2  # chosen: 12.50 may be a time or a section; two such numbers of a document seldom are, and no other one
)


class Reading(NamedTuple):
    """What a text means. ``others``: what it may mean as well; none where it is sure."""

    value: Any
    others: tuple[Any, ...] = ()


@lru_cache(maxsize=256)
def locale_of(name: str) -> Locale:
    """The locale of that name, such as ``de``, ``en_GB`` or ``pt-BR``.

    Raises ConfigurationError for an unknown one, and MissingDependencyError without the extra ``values``.
    """
    try:
        from babel import Locale, UnknownLocaleError
    except ImportError as error:
        raise MissingDependencyError("babel", "values", "Reading values as they are written") from error
    try:
        return Locale.parse(name.replace("-", "_"))
    except (UnknownLocaleError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"locale {name!r}: not known; expected a language such as 'de', or one with a territory such as 'en_GB'"
        ) from error


def western_digits(text: str) -> str:
    """The text with the digits 0 to 9 and one kind of space within lines; as long as it was."""
    if text.isascii():
        return text
    plain = (str(int(c)) if c.isdecimal() else " " if c.isspace() and c not in _BREAKS else c for c in text)
    return "".join(plain)


def without_marks(text: str) -> str:
    """The text without marks of direction."""
    return _BIDI.sub("", text)


def number_values(token: str) -> dict[str, Decimal]:
    """What digits with separators mean, by the decimal symbol, ``.`` or ``,``; none where they are no number."""
    found = {}
    for symbol in ".,":
        if (match := _forms()[symbol].fullmatch(token)) is not None:
            whole = re.sub(r"\D", "", match["whole"] or "0")
            found[symbol] = Decimal(f"{whole}.{match['fraction'] or 0}" if match["fraction"] else whole)
    return found


@lru_cache(maxsize=1)
def _forms() -> dict[str, re.Pattern[str]]:
    forms = {}
    for symbol in ".,":
        groups = _GROUPS.replace(symbol, "")
        indian = r"|[1-9]\d?(?:,\d\d)+,\d{3}" if symbol == "." else ""
        whole = rf"(?P<whole>\d+|[1-9]\d{{0,2}}(?P<group>[{groups}])\d{{3}}(?:(?P=group)\d{{3}})*{indian})?"
        forms[symbol] = re.compile(rf"{whole}(?:{re.escape(symbol)}(?P<fraction>\d+))?(?<=\d)")
    return forms


def written_numbers(text: str) -> Iterator[tuple[int, int, frozenset[Decimal]]]:
    """Start and end of the numbers of a text, and what each may mean; also with the sign that makes it negative.

    Of digits that spaces group all that they may be: ``2 345,00`` is one number, or 2 and 345. ``text``: with western
    digits.
    """
    for each in TOKEN.finditer(text):
        for first, last in _grouped(each.group()):
            if values := frozenset(number_values(each.group()[first:last]).values()):
                for start, end in _signed(text, each.start() + first, each.start() + last):
                    yield start, end, values


def _grouped(token: str) -> Iterator[tuple[int, int]]:
    """Start and end of the numbers that digits grouped by spaces may be.

    All of them together, and each run of at most five groups.
    """
    gaps = [at for at, character in enumerate(token) if character == " "]
    starts, ends = [0, *(at + 1 for at in gaps)], [*gaps, len(token)]
    if len(ends) > _MOST_GROUPS:
        yield 0, len(token)
    for first, start in enumerate(starts):
        if first == 0 or token[start] != "0":  # no number begins with a group such as 045
            for end in ends[first : first + _MOST_GROUPS]:
                yield start, end


def _signed(plain: str, start: int, end: int) -> list[tuple[int, int]]:
    """The place of a number with its sign, if it has one, and without: ``-€ 12.50``, ``(12,50 €)``, ``12,50-``."""
    places = [(start, end)]
    before, after = plain[max(0, start - _MARKS) : start], plain[end : end + _MARKS]
    if (sign := _SIGN_BEFORE.search(before)) is not None:
        closing = _CLOSING.match(after)
        if plain[start - len(before) + sign.start()] != "(":
            places.insert(0, (start - len(before) + sign.start(), end))
        elif closing is not None:
            places.insert(0, (start - len(before) + sign.start(), end + closing.end()))
    if (sign := _SIGN_AFTER.match(after)) is not None:
        places.insert(0, (start, end + sign.end()))
    return places


class DocumentTexts:
    """The texts that a value is from, which tell how their other numbers and dates are written."""

    def __init__(self, texts: Iterable[str | None] = ()) -> None:
        self.texts = tuple(filter(None, texts))

    @cached_property
    def plain(self) -> tuple[str, ...]:
        """The texts with western digits, each as long as it was."""
        return tuple(map(western_digits, self.texts))

    @cached_property
    def numbers(self) -> tuple[tuple[str, frozenset[Decimal]], ...]:
        """The numbers of the texts, also with what says that they are negative, and what each may mean without it."""
        texts = zip(self.plain, self.texts, strict=True)
        spots = ((text, spot) for plain, text in texts for spot in written_numbers(plain))
        return tuple((text[start:end], values) for text, (start, end, values) in spots)

    @cached_property
    def decimal_symbol(self) -> str | None:
        """``.`` or ``,``, where the texts have numbers that can be read by one of them alone, and by the same."""
        votes, is_sure = self._decimals
        return self._agreed(votes, 1 if is_sure else _FEW)

    @cached_property
    def symbol_of_amounts(self) -> str | None:
        """As ``decimal_symbol``, where numbers are so many that they are amounts, and no times or sections."""
        votes, is_sure = self._decimals
        return self._agreed(votes, 1 if is_sure else _SEVERAL)

    @cached_property
    def _decimals(self) -> tuple[Counter[str], bool]:
        """How many numbers have each decimal symbol, and whether one of them can be nothing else than a number."""
        votes = Counter[str]()
        sure = False
        for token in (found.group() for text in self.plain for found in _NUMBER.finditer(text)):
            values = number_values(token)
            if len(values) != 1:
                continue
            if sum(not c.isdigit() for c in token) > 1:
                sure = True
            elif not _TWO_DECIMALS.fullmatch(token):
                continue
            votes.update(values.keys())
        return votes, sure

    @cached_property
    def day_first(self) -> bool | None:
        """Whether numeric dates begin with the day, where all that can be told by agree."""
        found = self._agreed(self._telling_dates, 1)
        return None if found is None else found == "day"

    @property
    def has_telling_dates(self) -> bool:
        """Whether there are numeric dates of which one number can be no month."""
        return bool(self._telling_dates)

    @cached_property
    def _telling_dates(self) -> Counter[str]:
        votes = Counter[str]()
        for first, _, second in (found.groups() for text in self.plain for found in _DATE.finditer(text)):
            if (int(first) > 12) != (int(second) > 12):
                votes["day" if int(first) > 12 else "month"] += 1
        return votes

    @cached_property
    def has_24_hours(self) -> bool:
        """Whether there are times such as 15:30."""
        return any(map(_AFTER_NOON.search, self.plain))

    @staticmethod
    def _agreed(votes: Counter[str], least: int) -> str | None:
        return next(iter(votes)) if len(votes) == 1 and votes.total() >= least else None
