"""Redact secrets and personal data from captured rows before they are written to disk.

Off by default, since an e-mail address may be exactly what a model has to learn. ``redact=True`` uses
``redact_secrets``; any function from text to text can replace it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from ..example import loads

__all__ = ["Redactor", "redact_record", "redact_row", "redact_secrets"]

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


_KEY_STARTS = (
    "sk-", "sk_", "pk-", "pk_", "rk-", "rk_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-",
    "akia", "asia", "aiza", "hf_", "xox", "npm_", "pypi-",
)  # fmt: skip
# (substrings, pattern, replacement). To save time a pattern is only tried on text that contains one of its
# substrings in lower case; those without substrings are tried on text that contains a long number.
_RULES: tuple[tuple[tuple[str, ...], re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (
        ("private key",),
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"),
        "[PRIVATE_KEY]",
    ),
    (
        _KEY_STARTS,
        re.compile(
            r"(?<![A-Za-z0-9])(?:[spr]k[-_][A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}"
            r"|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,}|(?:AKIA|ASIA)[0-9A-Z]{16}"
            r"|AIza[0-9A-Za-z_-]{30,}|hf_[A-Za-z0-9]{20,}|xox[abeoprs]-[A-Za-z0-9-]{10,}"
            r"|npm_[A-Za-z0-9]{30,}|pypi-[A-Za-z0-9_-]{30,})"
        ),
        "[KEY]",
    ),
    (("eyj",), re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"), "[TOKEN]"),
    (("bearer",), re.compile(r"(?i)\b(bearer\s+)[A-Za-z0-9._~+/=-]{16,}"), r"\1[TOKEN]"),
    (
        ("key", "token", "secret", "pass", "pwd"),
        re.compile(
            r"(?i)((?<![a-z])(?:api[_-]?key|access[_-]?key|(?:access|auth|refresh)[_-]?token|client[_-]?secret"
            r"|secret(?:[_-]?(?:access[_-]?)?key)?|token|password|passwd|pwd)"
            r"""\\?["']?\s*[:=]\s*\\?["']?)([^\s"'\\,;{}\[\]]{6,})"""
        ),
        r"\1[SECRET]",
    ),
    (("://",), re.compile(r"(?<=://)[^\s/:@]+:[^\s/@]+(?=@)"), "[CREDENTIALS]"),
    (
        ("@",),
        re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}"),
        "[EMAIL]",
    ),
    ((), re.compile(rf"(?i)(?<![A-Z0-9])(?:{_IBAN_FORMS})(?![A-Z0-9])", re.ASCII), _redact_iban),
    (
        (),
        re.compile(
            rf"(?<![\w.-])(?:(?P<groups>\d{{4}}{_GAP}\d{{4}}{_GAP}\d{{4}}{_GAP}\d{{1,4}})(?P<tail>{_GAP}\d{{1,3}})?"
            rf"|\d{{4}}{_GAP}\d{{6}}{_GAP}\d{{4,5}}|\d{{13,19}})(?![\w-])"
        ),
        _redact_card,
    ),
    (
        (),
        re.compile(
            r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d(?:[ .-]?\d){5,12}"
            r"|(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4})(?![\w-])"
        ),
        "[PHONE]",
    ),
)
_SHORTEST = 7  # characters of the shortest text that any rule matches, such as a@bc.de
_LONGEST_NAMED = (
    512  # characters; chosen: longer values are text, not a secret under a key such as "password"
)
_DIGITS = re.compile("\\d[\\d ().\u00a0\u202f\u2011-]{7,}\\d")


def redact_secrets(text: str) -> str:
    """Replace keys, tokens, passwords, e-mail addresses, account, card and phone numbers by marks such as ``[KEY]``.

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
    lower = text.lower()
    has_number = None  # searched for once, and only where a rule needs it
    for substrings, pattern, replacement in _RULES:
        if substrings:
            may_match = any(substring in lower for substring in substrings)
        else:
            has_number = has_number if has_number is not None else _DIGITS.search(text) is not None
            may_match = has_number
        if may_match:
            text = pattern.sub(replacement, text)
    return text


def redact_record(record: dict[str, Any], redact: Redactor) -> dict[str, Any]:
    """Redact the row of an Example, or of a rejected one under "example".

    Numbers change in the messages only: one in an answer is what a model has to learn, and no text of a person.
    """
    return {
        key: redact_record(value, redact)
        if key == "example"
        else redact_row(value, redact, numbers=key == "messages")
        for key, value in record.items()
    }


def redact_row(row: Any, redact: Redactor, *, numbers: bool = True) -> Any:
    """Apply ``redact`` to every string of a JSON value, including keys and JSON inside strings, at any depth.

    With ``numbers``, a number whose digits ``redact`` changes becomes 0.
    """
    if isinstance(row, str):
        return _redact_text(row, redact, numbers)
    if isinstance(row, dict):
        return {redact(key): _redact_value(key, value, redact, numbers) for key, value in row.items()}
    if isinstance(row, list):
        return [redact_row(value, redact, numbers=numbers) for value in row]
    if numbers and isinstance(row, (int, float)) and not isinstance(row, bool):
        return row if redact(str(row)) == str(row) else 0
    return row


def _redact_value(key: str, value: Any, redact: Redactor, numbers: bool) -> Any:
    """Redact a value, also where only its key gives it away, as in ``{"password": "tiger7"}``."""
    redacted = redact_row(value, redact, numbers=numbers)
    if (
        not isinstance(value, str)
        or redacted != value
        or len(value) > _LONGEST_NAMED
        or _parsed(value) is not None
    ):
        return redacted
    named = redact(f"{key}: {value}")
    if named == f"{key}: {value}" or redact(key) != key:
        return value
    return named.removeprefix(f"{key}: ") if named.startswith(f"{key}: ") else "[SECRET]"


def _parsed(text: str) -> Any:
    """The object or list that a text is as JSON; None for any other text."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return loads(text)
    except ValueError:
        return None


def _redact_text(text: str, redact: Redactor, numbers: bool) -> str:
    """Redact a string; one that contains JSON stays valid JSON, unchanged where nothing was redacted."""
    if (value := _parsed(text)) is not None:
        redacted = redact_row(value, redact, numbers=numbers)
        return text if redacted == value else json.dumps(redacted, ensure_ascii=False)
    redacted_text = redact(text)
    if not isinstance(redacted_text, str):
        raise TypeError(f"the redactor returned {type(redacted_text).__name__}, expected str")
    return redacted_text
