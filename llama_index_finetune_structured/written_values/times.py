"""Times of day and points in time as texts write them: of 12 and 24 hours, with the words and zones of a locale."""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import date, datetime, time, timedelta, tzinfo
from functools import lru_cache
from itertools import product

from pydantic import TypeAdapter

from .dates import date_spots, read_date
from .readings import DocumentTexts, Reading, locale_of, western_digits, without_marks
from .zones import ZONE, read_zone

__all__ = ["datetime_spots", "read_datetime", "read_time", "time_spots"]

_ISO_TIME = re.compile(r"T?(\d\d:\d\d:\d\d(?:[.,]\d{1,6})?(?:Z|[+-]\d\d:\d\d(?::\d\d)?)?)")
_ISO = re.compile(
    r"\d{8}T\d{6}Z?|\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:[.,]\d{1,6})?)?(?:Z|[+-]\d\d:?\d\d(?::\d\d)?)?"
)
_ISO_SPOTS = re.compile(rf"(?<![\w-])(?:{_ISO.pattern})(?![\w:]|[.,+-]\d)")
_BASIC = re.compile(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)")
_ISO_TIMES, _ISO_DATETIMES = TypeAdapter(time), TypeAdapter(datetime)
_UNITS = "uhr|heures?|horas?|ore|uur|hod(?:in)?|godz|o[’']clock|час(?:а|ов)?|h|u|ч"
_BEFORE = r"(?:kl|klo|ore|godz|hod|um|at|ab|à|às|alle|a las|om|kello|в|v|o)\.?\s"
# "15:30", "15.30.12", "15h30", "15 h 30 min", "15 Uhr 30", "15時30分", "3" beside a unit or a word such as "pm"
_CLOCK = (
    r"T?(?P<hour>\d{1,2})"
    r"(?:(?:[:.](?P<minute>\d\d)(?:[:.](?P<second>\d\d)(?:[.,](?P<fraction>\d{1,6}))?)?(?![\d:/]|[.,]\d)"
    rf"(?P<unit>\s?(?:{_UNITS}|hrs?|hours)(?!\w)\.?)?)"
    rf"|(?P<word>\s?(?:{_UNITS}))(?:\.?\s?(?P<minute2>\d\d)(?![\d:/.,])(?:\s?min(?!\w)\.?(?:\s?(?P<second2>\d\d)\s?s)?)?)?(?!\w)\.?"
    r"|(?P<sign>\s?[時时点點시])(?:\s?(?P<minute3>\d{1,2})\s?[分분](?:\s?(?P<second3>\d{1,2})\s?[秒초])?)?"
    r"|(?=\s?PERIOD(?!\w)))"
)
_WHOLE = (
    rf"(?<![\dA-Za-zÀ-ɏ.,:/+−-])(?:(?P<early>PERIOD)\s?)?{_CLOCK}(?:\s?(?P<period>PERIOD)(?!\w))?"
    rf"(?P<gap>\s?)\(?(?P<zone>{ZONE})?\)?"
)
# Words between a date and a time, at the beginning of the date or its end.
_AROUND = re.compile(
    r"^(?:(?:am|den|on|the|le|el|il|dne|dnia|op)\s|[,;/|–\s-])+"
    r"|(?:[,;/|–\s-]|\s(?:um|at|à|às|a las|alle|ore|kl|klo|om|o|v|в|godz|ab)\.?(?=\s|$))+$",
    re.IGNORECASE,
)
_GAP = re.compile(r"[^\d\n]{0,16}")  # chosen: between a date and its time, as between the parts of a date
_LONGEST = 64  # characters of a time and the gap; chosen
_NOON = 12


def read_time(text: str, locales: Sequence[str], document: DocumentTexts) -> Reading:
    """The time of day that a text writes, with its zone where it names one.

    ``3:30`` may be in the afternoon where no locale has 24 hours, unless the document has such times.

    Raises ValueError for other texts.
    """
    plain = _plain(text)
    if (iso := _ISO_TIME.fullmatch(plain)) is not None:
        return Reading(_iso(text, iso[1]))
    bare = re.sub(rf"^{_BEFORE}", "", plain, flags=re.IGNORECASE)
    found = _pattern(tuple(locales)).fullmatch(bare)
    if found is None:
        raise ValueError(f"{text!r} is no time")
    reading = _clock(text, found, locales, document)
    return Reading(*_distinct([_time(text, *each) for each in reading]))


def read_datetime(text: str, locales: Sequence[str], document: DocumentTexts) -> Reading:
    """The point in time that a text writes: a date as ``read_date`` has it, and a time of day before or after it.

    A date alone is the beginning of the day. Raises ValueError for other texts.
    """
    plain = _plain(text)
    if _ISO.fullmatch(plain) is not None:
        try:
            return Reading(
                _ISO_DATETIMES.validate_python(_BASIC.sub(r"\1-\2-\3T\4:\5:\6", plain.replace(",", ".")))
            )
        except ValueError as error:
            raise ValueError(f"{text!r} is no point in time") from error
    found = [
        _moment(text, day, clock)
        for rest, clocks in _parts(text, plain, locales, document)
        for day, clock in product(_days(rest, locales, document), clocks)
    ]
    if not found:
        raise ValueError(f"{text!r} is no point in time")
    return Reading(*_distinct(found))


def _days(text: str, locales: Sequence[str], document: DocumentTexts) -> tuple[date, ...]:
    try:
        reading = read_date(text, locales, document)
    except ValueError:
        return ()
    return reading.value, *reading.others


def _plain(text: str) -> str:
    return " ".join(without_marks(western_digits(text)).split())


def _iso(text: str, iso: str) -> time:
    try:
        return _ISO_TIMES.validate_python(iso.replace(",", "."))
    except ValueError as error:
        raise ValueError(f"{text!r} is no time") from error


_Clock = tuple[int, int, int, int, tzinfo | None]


def _distinct(values: Sequence[time | datetime]) -> tuple[time | datetime, tuple[time | datetime, ...]]:
    first, *rest = dict.fromkeys(values)
    return first, tuple(rest)


def _time(text: str, hour: int, minute: int, second: int, micro: int, zone: tzinfo | None) -> time:
    try:
        return time(hour % 24 if (minute, second) == (0, 0) else hour, minute, second, micro, zone)
    except ValueError as error:
        raise ValueError(f"{text!r} is no time") from error


def _moment(text: str, day: date, clock: _Clock) -> datetime:
    """24 o'clock is the beginning of the next day."""
    hour, minute, second, *_ = clock
    try:
        moment = datetime.combine(day, _time(text, *clock))
        return moment + timedelta(days=1) if (hour, minute, second) == (24, 0, 0) else moment
    except OverflowError as error:
        raise ValueError(f"{text!r} is no point in time") from error


def _parts(
    text: str, plain: str, locales: Sequence[str], document: DocumentTexts
) -> Iterator[tuple[str, list[_Clock]]]:
    """What may be the date of a text, beside what may be its time; the usual order, a date before a time, first.

    Both may be written alike: 10.11.12.
    """
    for found in reversed(list(_pattern(tuple(locales)).finditer(plain))):
        before, after = plain[: found.start()], plain[found.end() :]
        if before.strip() and after.strip(" ).,") and not found["second"]:
            continue  # in the middle of a date, where only Unix has it
        with suppress(ValueError):
            clocks = _clock(text, found, locales, document)
            yield _AROUND.sub("", f"{before} {after}".strip(" ).,")).strip(), clocks
    yield plain, [(0, 0, 0, 0, None)]


def _clock(text: str, found: re.Match[str], locales: Sequence[str], document: DocumentTexts) -> list[_Clock]:
    """What a match may mean, the likeliest first. Raises ValueError where it is no time."""
    parts = found.groupdict()
    hour = int(parts["hour"])
    minute = int(parts["minute"] or parts["minute2"] or parts["minute3"] or 0)
    second = int(parts["second"] or parts["second2"] or parts["second3"] or 0)
    micro = int((parts["fraction"] or "").ljust(6, "0") or 0)
    if hour > 24 or minute > 59 or second > 59 or (hour == 24 and (minute or second)):
        raise ValueError(f"{text!r} is no time")
    period = parts["early"] or parts["period"]
    german = [locale_of(name).language == "de" for name in locales]
    if period == "am" and any(german):  # as in "15:30 Uhr am 3. April"
        others = [] if all(german) else _hours_of(hour, minute, period, locales)
        hours = list(dict.fromkeys([hour, *others]))
    elif period is not None:
        hours = _hours_of(hour, minute, period, locales)
        if not hours:
            raise ValueError(f"{text!r} is no time: it is not {period} then")
    elif _is_open(found, hour, locales, document):
        hours = [hour, hour + _NOON]
    else:
        hours = [hour]
    zones: tuple[tzinfo | None, ...] = (None,)
    if (zone := parts["zone"]) is not None:
        if zone[0] in "-−" and not parts["second"] and (":" in zone or not parts["gap"]):
            raise ValueError(f"{text!r} is more than one time")
        reading = read_zone(zone, locales)
        zones = (reading.value, *reading.others)
    return [(each, minute, second, micro, zone) for each, zone in product(hours, zones)]


def _is_open(found: re.Match[str], hour: int, locales: Sequence[str], document: DocumentTexts) -> bool:
    """Whether a time without a word such as "pm" may be before noon and after it."""
    has_form = found["second"] or found["unit"] or found["word"] or found["sign"]
    if has_form or not 0 < hour < _NOON or found["hour"].startswith("0"):
        return False
    clocks = {_has_24_hours(name) for name in locales}
    return clocks != {True} and not document.has_24_hours


@lru_cache(maxsize=256)
def _has_24_hours(name: str) -> bool:
    return "H" in str(locale_of(name).time_formats["short"].pattern)


def _hours_of(hour: int, minute: int, period: str, locales: Sequence[str]) -> list[int]:
    """The hours of the day that an hour with a word such as "pm" or "nachmittags" may be."""
    from babel.dates import get_period_id

    found = list[int]()
    for name in dict.fromkeys((*locales, "en")):
        kinds = _periods(name).get(_key(period), ())
        if not kinds:
            continue
        hours = [hour] if hour > _NOON else [hour % _NOON, hour % _NOON + _NOON]
        for each in hours:
            if each > 23:
                continue
            own = {"am"} if each < _NOON else {"pm"}
            own |= {"noon"} if (each, minute) == (_NOON, 0) else set()
            own |= {"midnight"} if (each, minute) == (0, 0) else set()
            own |= {get_period_id(time(each, minute), locale=locale_of(name))}
            if own & kinds:
                found.append(each)
        if found:
            break
    return found


def _key(period: str) -> str:
    return re.sub(r"[.\s]", "", period).casefold()


@lru_cache(maxsize=256)
def _periods(name: str) -> dict[str, frozenset[str]]:
    """The parts of the day, such as ``pm`` and ``afternoon1``, by the words that a locale has for them."""
    found: dict[str, frozenset[str]] = {}
    for text, kind in _period_texts(name):
        found[_key(text)] = found.get(_key(text), frozenset()) | {kind}
    return found


@lru_cache(maxsize=256)
def _period_texts(name: str) -> tuple[tuple[str, str], ...]:
    widths = [
        names[width]
        for names in locale_of(name).day_periods.values()
        for width in ("wide", "abbreviated")
        if width in names
    ]
    texts = [(str(text), kind) for names in widths for kind, text in names.items()]
    return tuple((text, kind) for text, kind in texts if len(_key(text)) > 1 or not text.isascii())


@lru_cache(maxsize=64)
def _pattern(locales: tuple[str, ...]) -> re.Pattern[str]:
    """A time of day, with the words that the locales have for the parts of the day."""
    texts = {text for name in (*locales, "en") for text, _ in _period_texts(name)}
    words = (_period_pattern(text) for text in sorted(texts, key=lambda text: (-len(text), text)))
    return re.compile(_WHOLE.replace("PERIOD", f"(?:{'|'.join(words)})"), re.IGNORECASE)


def _period_pattern(text: str) -> str:
    """A word for a part of the day; short ones such as "p. m." also with fewer dots and spaces."""
    plain = " ".join(text.split())
    bare = re.sub(r"[.\s]", "", plain)
    if len(bare) < 4 and bare.isalpha():
        return r"\.?\s?".join(map(re.escape, bare)) + r"\.?"
    return re.escape(plain)


def time_spots(text: str, locales: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Start and end of what may write a time of day in a text, with its zone and without; western digits."""
    for found in _pattern(tuple(locales)).finditer(text):
        start, end = found.span()
        if found["zone"] is None:
            end = found.start("gap")
        elif text[end - 1] == ")" and "(" not in found[0]:
            end -= 1
        if (
            text[end - 1] == "." and "." not in (found["period"] or "")[:-1]
        ):  # of the sentence, unlike in "p.m."
            yield start, end - 1
        yield start, end
        if found["zone"] is not None:
            yield found.start(), len(text[: found.start("zone")].rstrip(" ("))


def datetime_spots(text: str, moment: datetime, locales: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Start and end of what may write a point in time: a day's date and a time beside each other."""
    times = sorted(time_spots(text, locales))
    starts = [start for start, _ in times]
    for first, last in date_spots(text, moment.date(), locales):
        near = bisect(starts, first - _LONGEST), bisect(starts, last + _LONGEST)
        for start, end in times[slice(*near)]:
            between = text[min(last, end) : max(first, start)]
            if (last <= start or end <= first) and _GAP.fullmatch(between):
                yield min(first, start), max(last, end)
        if moment.time() == time():
            yield first, last
    yield from (found.span() for found in _ISO_SPOTS.finditer(text))
