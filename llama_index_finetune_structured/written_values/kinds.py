"""The kinds of values that are read as they are written: their readers, canonical texts and spellings in a text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

from .dates import date_spots, read_date
from .numbers import currency_spellings, number_text, read_currency, read_number
from .readings import DocumentTexts, Reading
from .times import datetime_spots, read_datetime, read_time, time_spots

__all__ = ["KEYWORD", "WRITTEN_NUMBERS", "WrittenKind", "stands_in", "written_kind"]

KEYWORD = "x-written"
"""Keyword of a JSON schema whose strings are written as the text has them: ``{"type": ..., "locales": [...]}``."""


@dataclass(frozen=True)
class WrittenKind:
    """One kind of value in some locales. ``name``: one of ``NAMES``."""

    name: str
    locales: tuple[str, ...]

    @property
    def keyword(self) -> dict[str, Any]:
        """The value of the keyword."""
        return {"type": self.name, "locales": list(self.locales)}

    def read(self, text: str, document: DocumentTexts) -> Reading:
        """What a text means. Raises ValueError where it is of another kind."""
        if self.name == "currency":
            return read_currency(text, self.locales)
        if self.name in _MOMENTS:
            return _MOMENTS[self.name](text, self.locales, document)
        reading = read_number(text, self.locales, document)
        if self.name == "integer" and reading.value % 1:
            raise ValueError(f"{text!r} is no whole number")
        return reading

    def text(self, value: Any) -> str:
        """The canonical text of a value, which is read the same in all locales."""
        if isinstance(value, date | time):
            return value.isoformat()
        return value if isinstance(value, str) else number_text(Decimal(str(value)))

    def spelling(self, text: str, document: DocumentTexts) -> str:
        """How the document writes what a text means: the text itself where it stands there, else another spelling.

        Of several, one with as many decimals, else the first; the canonical text where there is none. Raises
        ValueError where the text is of another kind, or not sure.
        """
        if stands_in(text, document.texts):
            return text
        reading = self.read(text, document)
        if reading.others:
            raise ValueError(f"{text!r} is {_choices(self, reading)}")
        found = [
            each for each in self._spots(reading.value, document) if self._is(each, reading.value, document)
        ]
        same = (each for each in found if _decimals(each) == _decimals(self.text(reading.value)))
        return next(same, found[0] if found else self.text(reading.value))

    def unsure_spelling(self, text: str, document: DocumentTexts) -> str | None:
        """What of the document may mean what a text means, or something else, with what it may mean; None: nothing."""
        value = self.read(text, document).value
        for each in self._spots(value, document):
            with suppress(ValueError):
                reading = self.read(each, document)
                if reading.others and value in (reading.value, *reading.others):
                    return f"{each!r} may be {_choices(self, reading)}"
        return None

    def _is(self, text: str, value: Any, document: DocumentTexts) -> bool:
        try:
            return self.read(text, document) == Reading(value)
        except ValueError:
            return False

    def _spots(self, value: Any, document: DocumentTexts) -> Iterator[str]:
        """Texts of the document that may write a value."""
        if self.name == "currency":
            for text in currency_spellings(value, self.locales):
                pattern = rf"(?<!\w){re.escape(text)}(?!\w)" if text[:1].isalnum() else re.escape(text)
                for content in document.texts:
                    yield from (found.group() for found in re.finditer(pattern, content, re.IGNORECASE))
            return
        if self.name not in _MOMENTS:
            yield from (text for text, values in document.numbers if abs(value) in values)
            return
        for plain, content in zip(document.plain, document.texts, strict=True):
            yield from (content[start:end] for start, end in self._moments(plain, value))

    def _moments(self, plain: str, value: Any) -> Iterator[tuple[int, int]]:
        if self.name == "time":
            return time_spots(plain, self.locales)
        if isinstance(value, datetime):
            return datetime_spots(plain, value, self.locales)
        return date_spots(plain, value, self.locales)


def stands_in(text: str, texts: tuple[str, ...]) -> bool:
    """Whether a text stands in others, with no digit, letter or separator of a number that goes on beside it."""
    pattern = re.compile(rf"(?<!\w)(?<!\d[.,'’]){re.escape(text)}(?!\w)(?![.,'’]\d)")
    return bool(text) and any(pattern.search(content) for content in texts)


def _choices(kind: WrittenKind, reading: Reading) -> str:
    return " or ".join(map(kind.text, (reading.value, *reading.others)))


def _decimals(text: str) -> int:
    found = re.search(r"[.,](\d{1,2}|\d{4,})\D*$", text)
    return len(found[1]) if found else 0


def written_kind(schema: Any) -> WrittenKind | None:
    """The kind of a schema's strings, by its keyword; None where it has none that is understood."""
    found = schema.get(KEYWORD) if isinstance(schema, Mapping) else None
    if not isinstance(found, Mapping) or found.get("type") not in NAMES:
        return None
    locales = found.get("locales") or ()
    return WrittenKind(found["type"], tuple(name for name in locales if isinstance(name, str)))


_MOMENTS: dict[str, Callable[[str, Sequence[str], DocumentTexts], Reading]] = {
    "date": read_date,
    "datetime": read_datetime,
    "time": read_time,
}
WRITTEN_NUMBERS = frozenset(("decimal", "integer", "number"))
NAMES = (*sorted(WRITTEN_NUMBERS), "currency", *_MOMENTS)
