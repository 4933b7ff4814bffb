"""Dates as texts write them: in numbers, in the order of a locale, and with the names of months."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import date
from functools import lru_cache
from typing import Any

from ..errors import MissingDependencyError
from .numbers import locale_symbols
from .readings import DocumentTexts, Reading, locale_of, western_digits, without_marks

__all__ = ["date_spots", "read_date"]

_ISO = re.compile(r"(\d{4})-(\d\d)-(\d\d)")
_NUMERIC = r"\d{1,4}(?:\s?[./-]\s?|\s)\d{1,2}(?:\s?[./-]\s?|\s)\d{1,4}"
_PARTS = re.compile(r"(\d{1,4})(\s?[./-]\s?|\s)(\d{1,2})(\s?[./-]\s?|\s)(\d{1,4})\.?")
_EAST_ASIAN = re.compile(r"(\d{4})\s?[年년]\s?(\d{1,2})\s?[月월]\s?(\d{1,2})\s?[日일]?")
_NUMBERS_ALONE = re.compile(r"[\d\s./年년月월日일-]+")
_CENTURY = 69  # of years in two digits, as POSIX has it: 69 is 1969, 68 is 2068
_BETWEEN = r"[^\n\d]{0,16}?"  # chosen: between the parts of a date, such as " de " and "rd of "
_PARSER: dict[str, Any] = {
    "STRICT_PARSING": True,
    "REQUIRE_PARTS": ["day", "month", "year"],
    "PARSERS": ["absolute-time"],
}


def read_date(text: str, locales: Sequence[str], document: DocumentTexts) -> Reading:
    """The day that a text writes.

    Where day and month may be exchanged, the locales decide, those first whose own dates have the mark between the
    numbers (``.``, ``/``, ``-``); without any, or where they disagree, the day of the week, the document's other
    dates, or those locales that write decimals as the document does.

    Raises ValueError for other texts.
    """
    plain = " ".join(without_marks(western_digits(text)).split())
    bare, weekday = _without_weekday(plain, locales)
    reading = _read(text, bare if _NUMBERS_ALONE.fullmatch(bare) else plain, locales, document)
    known = [day for day in (reading.value, *reading.others) if day.weekday() == weekday]
    return Reading(known[0]) if len(known) == 1 else reading


def _without_weekday(plain: str, locales: Sequence[str]) -> tuple[str, int | None]:
    """The text without the name of a day of the week before or after it, and the number of that day."""
    for word, rest in ((plain.partition(" ")[::2]), (plain.rpartition(" ")[::-2])):
        name = word.strip("().,").casefold()
        for locale in (*locales, "en"):
            if name in (days := _weekdays(locale)):
                return rest, days[name]
    return plain, None


@lru_cache(maxsize=64)
def _weekdays(name: str) -> dict[str, int]:
    widths = [kinds[width] for kinds in locale_of(name).days.values() for width in ("wide", "abbreviated")]
    return {str(text).rstrip(".").casefold(): number for names in widths for number, text in names.items()}


def _read(text: str, plain: str, locales: Sequence[str], document: DocumentTexts) -> Reading:
    for form in (_ISO, _EAST_ASIAN):
        if (found := form.fullmatch(plain)) is not None:
            year, month, day = map(int, found.groups())
            return Reading(_valid(text, year, month, day))
    if (found := _PARTS.fullmatch(plain)) is not None and (mark := found[2].strip()) == found[4].strip():
        own = [name for name in locales if mark and mark in _short_form(name)]
        return _numeric(text, (found[1], found[3], found[5]), own or locales, document)
    return Reading(_named(text, plain, locales))


def _valid(text: str, year: int, month: int, day: int) -> date:
    try:
        return date(year, month, day)
    except ValueError as error:
        raise ValueError(f"{text!r} is no date") from error


def _numeric(
    text: str, parts: tuple[str, str, str], locales: Sequence[str], document: DocumentTexts
) -> Reading:
    """A date in three numbers. ISO 8601 and all forms that begin with four digits have the year first."""
    days = dict[str, date]()
    for order in ("ymd",) if len(parts[0]) > 2 else ("dmy", "mdy", "ymd"):
        written = dict(zip(order, parts, strict=True))
        if len(written["y"]) in (2, 4) and len(written["d"]) < 3:
            with suppress(ValueError):
                days[order] = date(_year(written["y"]), int(written["m"]), int(written["d"]))
    known = {name: order for name in locales if (order := _order(name)) in days}
    orders = list(dict.fromkeys(known.values()))
    if len({days[order] for order in orders}) > 1 and not document.has_telling_dates:
        symbol = document.symbol_of_amounts
        near = dict.fromkeys(order for name, order in known.items() if locale_symbols(name)[0] == symbol)
        orders = list(near) or orders
    candidates = orders or [order for order in days if order != "ymd"] or list(days)
    if not candidates:
        raise ValueError(f"{text!r} is no date")
    here = {None: None, True: "dmy", False: "mdy"}[document.day_first]
    first = days[candidates[0]]
    if len({days[order] for order in candidates}) > 1:
        return Reading(days[here]) if here in candidates else _unsure(first, [days[o] for o in candidates])
    is_told = here in days and "ymd" not in candidates
    return _unsure(first, [days[here]]) if is_told and here is not None else Reading(first)


def _unsure(value: date, others: Sequence[date]) -> Reading:
    return Reading(value, tuple(other for other in dict.fromkeys(others) if other != value))


def _year(digits: str) -> int:
    year = int(digits)
    return year if len(digits) > 2 else year + (1900 if year >= _CENTURY else 2000)


@lru_cache(maxsize=256)
def _order(name: str) -> str:
    """The order of day, month and year in a locale's numeric dates, such as ``dmy``."""
    return "".join(sorted("dmy", key=_short_form(name).find))


@lru_cache(maxsize=256)
def _short_form(name: str) -> str:
    """The pattern of a locale's numeric dates, such as ``dd.mm.yy``."""
    return str(locale_of(name).date_formats["short"].pattern).lower()


def _named(text: str, plain: str, locales: Sequence[str]) -> date:
    """A date with the name of its month. Raises ValueError for other texts."""
    try:
        import dateparser  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError("dateparser", "values", "Reading dates as they are written") from error
    numbers = re.findall(r"\d+", plain)
    languages = list(dict.fromkeys(locale_of(name).language for name in locales)) or ["en"]
    found = None
    if len(numbers) == 2:  # others are times or relative, for which dateparser has answers too
        order = "YMD" if len(numbers[0]) == 4 else "DMY"
        for each in (plain, _with_whole_months(plain, locales)):
            with suppress(ValueError):  # of languages that dateparser does not have
                options = {**_PARSER, "DATE_ORDER": order}
                found = found or dateparser.parse(each, languages=languages, settings=options)
    if found is None:
        raise ValueError(f"{text!r} is no date")
    day, year = numbers if len(numbers[0]) < 3 else reversed(numbers)
    return _valid(text, _year(year), found.month, int(day))


def _with_whole_months(plain: str, locales: Sequence[str]) -> str:
    """The text with whole names of months for abbreviations, of which dateparser does not know all."""
    whole = {form.casefold(): forms[0] for name in locales for forms in _month_names(name) for form in forms}
    return re.sub(r"[^\W\d_]+\.?", lambda word: whole.get(word[0].rstrip(".").casefold(), word[0]), plain)


def date_spots(text: str, day: date | None, locales: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Start and end of what may write a day in a text, in order. ``day``: None: any; ``text``: with western digits.

    They may overlap: in "June 3, 2024; due July 3, 2024" the year of the one day stands before the month of the other.
    """
    patterns = _any_day(tuple(locales)) if day is None else _patterns(day, tuple(locales))
    return iter(sorted({found.span(1) for each in patterns for found in each.finditer(text)}))


@lru_cache(maxsize=64)
def _any_day(locales: tuple[str, ...]) -> list[re.Pattern[str]]:
    """Patterns of what may write a day, in their first group; rather of too much than of too little."""
    century = r"(?:19|20)\d\d"
    numeric = (
        r"\d{1,4} {0,2}(?P<mark>[./-]) {0,2}\d{1,2} {0,2}(?P=mark) {0,2}\d{1,4}"
        rf"|\d{{1,2}} \d{{1,2}} {century}|{century} \d{{1,2}} \d{{1,2}}"
    )
    day = r"(?:0?[1-9]|[12]\d|3[01])"
    known = _spellings(numeric, day, range(12), r"(?:\d{4}|\d\d)", locales, between=r"[^\n\d;|()\[\]]{0,16}?")
    # Months that a locale's own lists do not have: without accents, of one country, abbreviated otherwise.
    word, of = r"[^\W\d_]{3,}\.?", r"[\s./,-]{0,2}(?:(?:de|of|do|del)\s)?"
    forms = (
        rf"{day}(?:er|st|nd|rd|th|[.ºª])?{of}{word}{of}{century}",
        rf"{word}{of}{day}(?:st|nd|rd|th|\.)?{of}{century}",
    )
    return [*known, *map(_spot, forms)]


def _patterns(day: date, locales: tuple[str, ...]) -> list[re.Pattern[str]]:
    year = rf"(?:{day.year:04}|{day.year % 100:02})"
    return _spellings(_NUMERIC, f"0?{day.day}", [day.month - 1], year, locales)


def _spellings(
    numeric: str,
    day: str,
    months: Iterable[int],
    year: str,
    locales: tuple[str, ...],
    between: str = _BETWEEN,
) -> list[re.Pattern[str]]:
    known = [_month_names(locale)[month] for locale in (*locales, "en") for month in months]
    names = sorted({name for forms in known for name in forms}, key=lambda name: (-len(name), name))
    month = rf"(?<!\w)(?:{'|'.join(map(re.escape, names))})"
    forms = (
        numeric,
        _EAST_ASIAN.pattern.replace("(", "(?:"),
        rf"{day}(?!\d){between}{month}{between}{year}",
        rf"{month}{between}{day}(?!\d){between}{year}",
        rf"{year}(?!\d){between}{month}{between}{day}",
    )
    return [_spot(each) for each in forms]


def _spot(form: str) -> re.Pattern[str]:
    """A pattern of a form, in its first group: no part of a longer number, but perhaps of a range of two days.

    A match takes no text away from the next one.
    """
    before = (
        r"(?<![^\W_])(?:(?<!\d[./])|(?<=/)(?=\d{4}-|\d\d?[.-]\d))(?:(?<!\d-)|(?<=[./ ]\d\d-)|(?<=\d{4}-))"
    )
    after = (
        r"(?![^\W_]|\.\d|/(?!\d{4}-|\d\d?[.-])\d"
        r"|-\d{1,2}(?![\d./-]|\s?[^\W\d_])|-\d\d-\d\d(?![\d-]))"
    )
    return re.compile(rf"{before}(?=({form}){after})", re.IGNORECASE)


@lru_cache(maxsize=64)
def _month_names(name: str) -> list[list[str]]:
    """The names of the twelve months in a locale, also inflected and abbreviated."""
    kinds = [
        forms
        for widths in locale_of(name).months.values()
        for forms in (widths["wide"], widths["abbreviated"])
    ]
    return [[forms[month].rstrip(".") for forms in kinds] for month in range(1, 13)]
