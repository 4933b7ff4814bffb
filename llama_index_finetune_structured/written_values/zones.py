"""Time zones as texts write them: offsets, UTC, and the abbreviations of a locale."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from functools import lru_cache

from .readings import Reading, locale_of

__all__ = ["ZONE", "read_zone"]

ZONE = r"(?:(?:UTC|GMT)\s?[+−-]\s?\d{1,2}(?::?\d\d)?|[+−-]\d\d:?\d\d|(?-i:Z|[^\W\d_a-z]{2,5}))(?![\w:])"
"""A zone in a text, of capital letters or an offset."""
_OFFSET = re.compile(r"(?:UTC|GMT)?\s?([+−-])\s?(\d{1,2}):?(\d\d)?")
_UTC = ("Z", "UTC", "GMT")
_OTHER_LOCALES = ("en_US", "en_GB")  # for abbreviations that a locale lacks
_FARTHEST = 14  # hours
_SEASONS = (datetime(2025, 1, 1), datetime(2025, 7, 1))  # in one of which each zone has its standard time


def read_zone(text: str, locales: Sequence[str]) -> Reading:
    """The offset that a text names. Raises ValueError for other texts."""
    if text in _UTC:
        return Reading(timezone.utc)
    if (found := _OFFSET.fullmatch(text)) is not None:
        sign, hours, minutes = -1 if found[1] != "+" else 1, int(found[2]), int(found[3] or 0)
        if hours > _FARTHEST or minutes > 59:
            raise ValueError(f"{text!r} is no time zone")
        return Reading(_zone(sign * timedelta(hours=hours, minutes=minutes)))
    own = [_abbreviations(name).get(text) for name in locales]
    others = [_abbreviations(name).get(text) for name in _OTHER_LOCALES]
    offsets = dict.fromkeys(filter(None, own if any(own) else others))
    if not offsets:
        raise ValueError(f"{text!r} is no time zone")
    first, *rest = map(_zone, offsets)
    return Reading(first, tuple(rest))


def _zone(offset: timedelta) -> timezone:
    return timezone(offset)


@lru_cache(maxsize=64)
def _abbreviations(name: str) -> dict[str, timedelta]:
    """The offsets by the abbreviations that a locale has for zones, such as MEZ and MESZ."""
    found = dict[str, timedelta]()
    for zone, names in locale_of(name).meta_zones.items():
        short = dict(names["short"]) if "short" in names else {}
        offsets = _offsets(zone) if short else None
        for kind in ("standard", "daylight"):
            if offsets is not None and kind in short:
                found[short[kind]] = offsets[kind == "daylight"]
    return found


@lru_cache(maxsize=256)
def _offsets(meta_zone: str) -> tuple[timedelta, timedelta] | None:
    """The offsets of a zone of CLDR in standard and in daylight time; None where the system has no data of it."""
    from zoneinfo import ZoneInfo

    from babel.core import get_global

    standard, daylight = Counter[timedelta](), Counter[timedelta]()
    for name, belongs_to in get_global("meta_zones").items():
        if belongs_to != meta_zone:
            continue
        with suppress(KeyError, ValueError, OSError):  # of systems without that zone
            found = sorted(day.replace(tzinfo=ZoneInfo(name)).utcoffset() or timedelta() for day in _SEASONS)
            standard[found[0]] += 1
            daylight.update({found[1]} if found[1] != found[0] else ())
    if not standard:
        return None
    usual = standard.most_common(1)[0][0]
    return usual, max(daylight, key=daylight.__getitem__, default=usual + timedelta(hours=1))
