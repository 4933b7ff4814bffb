"""Redact secrets and personal data from captured rows before they are written to disk.

Off by default, since an e-mail address may be exactly what a model has to learn. ``redact=True`` uses
``redact_secrets``; any function from text to text can replace it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..example import loads
from ..json_schema import is_number
from .known_secrets import environment_secrets, mask_remembered, remember_secret
from .named_secrets import is_named_secret, secret_name
from .phone_numbers import redact_phones
from .secret_patterns import rules_for

__all__ = ["Redactor", "redact_record", "redact_row", "redact_secrets", "remember_environment"]

Redactor = Callable[[str], str]
"""A function that returns a text without its secrets."""


# Lengths and first digits that card issuers use. Of other numbers a tenth passes Luhn's check as well: times in
# milliseconds, article numbers. Cards of 13 digits are no longer issued, and article numbers (EAN) have as many.
_CARDS = re.compile(
    r"4(?:\d{15}|\d{18})|3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11}|(?:2[2-7]|35|5[0-9])\d{14}|6\d{15,18}"
)
_GAP = "[ \u00a0\u202f\u2011-]"  # between groups of digits; texts of PDFs have spaces that do not break
# By length of the whole number: the countries of the IBAN registry (ISO 13616).
_IBAN_COUNTRIES = {
    15: "NO", 16: "BE", 18: "DK FI FK FO GL NL SD",
    19: "MK SI", 20: "AT BA EE KZ LT LU MN XK", 21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
    29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
}  # fmt: skip
_IBAN_FORMS = "|".join(
    rf"(?:{countries.replace(' ', '|')})\d{{2}}(?:{_GAP}?[A-Z0-9]){{{length - 4}}}"
    for length, countries in _IBAN_COUNTRIES.items()
)


def _redact_iban(match: re.Match[str]) -> str:
    """``[IBAN]`` for an account number with the right check digits (ISO 7064, modulo 97), else the text itself."""
    iban = "".join(char for char in match[0] if char.isalnum())
    number = "".join(str(int(char, 36)) for char in iban[4:] + iban[:4])
    return "[IBAN]" if int(number) % 97 == 1 else match[0]


def _redact_card(match: re.Match[str]) -> str:
    """``[CARD]`` for a card's number that passes Luhn's check, else the number itself."""
    if _is_card(match[0]):
        return "[CARD]"
    # A group after the number may be something else, such as the card's security code.
    number, tail = match["groups"] or "", match["tail"] or ""
    return f"[CARD]{tail}" if tail and _is_card(number) else match[0]


def _is_card(text: str) -> bool:
    number = "".join(char for char in text if char.isdigit())
    digits = [int(char) for char in reversed(number)]
    doubled = [digit * 2 - 9 if digit > 4 else digit * 2 for digit in digits[1::2]]
    return bool(_CARDS.fullmatch(number)) and (sum(digits[0::2]) + sum(doubled)) % 10 == 0


_EMAIL = re.compile(r"(?<![\w.%+-])(?!git@)[\w.%+-]{1,64}@(?!\dx\.)[\w-]+(?:\.[\w-]+)*\.[^\W\d_]{2,}")
_IBAN = re.compile(rf"(?i)(?<![A-Z0-9])(?:{_IBAN_FORMS})(?![A-Z0-9])", re.ASCII)
_CARD_FORMS = re.compile(
    rf"(?<![\w.-])(?:(?P<groups>\d{{4}}{_GAP}\d{{4}}{_GAP}\d{{4}}{_GAP}\d{{1,4}})(?P<tail>{_GAP}\d{{1,3}})?"
    rf"|\d{{4}}{_GAP}\d{{6}}{_GAP}\d{{4,5}}|\d{{13,19}})(?![\w-])"
)
_SHORTEST = 7  # characters of the shortest text that any rule matches, such as a@bc.de
_NO_WORD = re.compile(r"(?=\S*\d)(?=\S*[^\W\d_])\S{12,}")
_LONGEST_NAMED = (
    512  # characters; chosen: longer values are text, not a secret under a key such as "password"
)
_DIGITS = re.compile("\\d[\\d ()./\u00a0\u202f\u2011-]{5,}\\d")


def redact_secrets(text: str) -> str:
    """Replace keys, tokens, passwords, e-mail addresses, account, card and phone numbers by marks such as ``[KEY]``.

    The keys that LLMs and engines of this package were given are replaced whatever their form.

    Account numbers are IBANs with the right check digits; card numbers are those of a card issuer that pass Luhn's
    check.

    Args:
        text: Any text.

    Returns:
        The text with ``[PRIVATE_KEY]``, ``[KEY]``, ``[TOKEN]``, ``[SECRET]`` (the value after a name such as
            ``password``), ``[CREDENTIALS]`` (of a URL), ``[EMAIL]``, ``[IBAN]``, ``[CARD]`` and ``[PHONE]`` in
            their places.
    """
    if len(text) < _SHORTEST:
        return text
    text = mask_remembered(text)
    for rule in rules_for(text):
        text = rule.pattern.sub(rule.replacement, text)
    if "@" in text:
        text = _EMAIL.sub("[EMAIL]", text)
    if _DIGITS.search(text) is None:
        return text
    return redact_phones(_CARD_FORMS.sub(_redact_card, _IBAN.sub(_redact_iban, text)))


def remember_environment() -> None:
    """Have ``redact_secrets`` replace the environment's secrets too; those that may be words are left out."""
    for value in environment_secrets():
        if _NO_WORD.fullmatch(value):
            remember_secret(value)


def redact_record(record: dict[str, Any], redact: Redactor) -> dict[str, Any]:
    """Redact the row of an Example, or of a rejected one under "example".

    Numbers change in the messages only: one in an answer is what a model has to learn, and no text of a person. The
    names and the constants of the row's schema and tools stay, in the answer as well, so that they still fit.
    """
    row = record.get("example", record)
    kept = frozenset(_schema_texts([row.get(name) for name in _SCHEMA_FIELDS]))
    return {
        key: redact_record(value, redact)
        if key == "example"
        else redact_row(value, redact, numbers=key == "messages", kept=kept)
        for key, value in record.items()
    }


_SCHEMA_FIELDS = ("answer_schema", "response_format", "tools", "schema_text")


def _schema_texts(schema: Any) -> Iterator[str]:
    """Names of fields, of enums and of constants in JSON schemas, at any depth and in text."""
    if isinstance(schema, str):
        parsed = _parsed(schema)
        if parsed is not None:
            yield from _schema_texts(parsed)
    elif isinstance(schema, list):
        for item in schema:
            yield from _schema_texts(item)
    elif isinstance(schema, dict):
        for key, value in schema.items():
            if key in ("properties", "$defs", "definitions") and isinstance(value, dict):
                yield from value
            if key in ("enum", "required") and isinstance(value, list):
                yield from (item for item in value if isinstance(item, str))
            elif key in ("const", "name", "title", "$ref") and isinstance(value, str):
                yield value
            else:
                yield from _schema_texts(value)


def redact_row(
    row: Any, redact: Redactor, *, numbers: bool = True, kept: frozenset[str] = frozenset()
) -> Any:
    """Apply ``redact`` to every string of a JSON value, including keys and JSON inside strings, at any depth.

    With ``numbers``, a number whose digits ``redact`` changes becomes 0. Strings in ``kept`` stay.
    """
    return _RowRedactor(redact, numbers, kept).value(row)


@dataclass(frozen=True)
class _RowRedactor:
    """Walks a row. ``numbers``: redact numbers too. ``kept``: strings that stay, such as the names of fields."""

    redact: Redactor
    numbers: bool
    kept: frozenset[str]

    def value(self, value: Any, strength: str | None = None) -> Any:
        """The redacted value; ``strength`` is that of the nearest name above it that names a secret."""
        if isinstance(value, str):
            return self._text(value, strength)
        if isinstance(value, dict):
            return {self._name(key): self._under(key, item, strength) for key, item in value.items()}
        if isinstance(value, list):
            return [self.value(item, strength) for item in value]
        if self.numbers and is_number(value):
            return value if self.redact(str(value)) == str(value) else 0
        return value

    def _name(self, name: str) -> str:
        return name if name in self.kept else self._redacted(name)

    def _under(self, name: str, value: Any, strength: str | None) -> Any:
        """Redact a value, also where only its key gives it away: ``{"password": "tiger7"}``."""
        if self.redact is not redact_secrets:
            return self._named(name, self.value(value), value)
        own = secret_name(name)
        return self.value(value, "strong" if "strong" in (own, strength) else own or strength)

    def _named(self, name: str, redacted: Any, value: Any) -> Any:
        """As ``_under``, for a redactor of the user's: whether it redacts the value after its name."""
        if not isinstance(value, str) or redacted != value or not 0 < len(value) <= _LONGEST_NAMED:
            return redacted
        line = f"{name}: {value}"
        named = self._redacted(line)
        if named == line or self._redacted(name) != name or value in self.kept or _parsed(value) is not None:
            return redacted
        return named.removeprefix(f"{name}: ") if named.startswith(f"{name}: ") else "[SECRET]"

    def _text(self, text: str, strength: str | None) -> str:
        """Redact a string; one that contains JSON stays valid JSON, unchanged where nothing was redacted."""
        if text in self.kept:
            return text
        if (value := _parsed(text)) is not None:
            redacted = self.value(value, strength)
            return text if redacted == value else json.dumps(redacted, ensure_ascii=False)
        if strength is not None and len(text) <= _LONGEST_NAMED and is_named_secret(strength, text):
            return "[SECRET]"
        return self._redacted(text)

    def _redacted(self, text: str) -> str:
        redacted = self.redact(text)
        if not isinstance(redacted, str):
            raise TypeError(f"the redactor returned {type(redacted).__name__}, expected str")
        return redacted


def _parsed(text: str) -> Any:
    """The object or list that a text is as JSON; None for any other text."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return loads(text)
    except ValueError:
        return None
