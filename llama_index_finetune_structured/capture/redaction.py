"""Redact secrets and personal data from captured rows before they are written to disk.

Off by default, since an e-mail address may be exactly what a model has to learn. ``redact=True`` uses
``redact_secrets``; any function from text to text can replace it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

__all__ = ["Redactor", "redact_row", "redact_secrets"]

Redactor = Callable[[str], str]
"""A function that returns a text without its secrets."""


def _redact_card(match: re.Match[str]) -> str:
    """``[CARD]`` for a number that passes Luhn's check, else the number itself."""
    digits = [int(char) for char in reversed(match[0]) if char.isdigit()]
    doubled = [digit * 2 - 9 if digit > 4 else digit * 2 for digit in digits[1::2]]
    return match[0] if (sum(digits[0::2]) + sum(doubled)) % 10 else "[CARD]"


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
    (
        (),
        re.compile(
            r"(?<![\w.-])(?:\d{4}[ -]\d{4}[ -]\d{4}[ -]\d{1,4}(?:[ -]\d{1,3})?"
            r"|\d{4}[ -]\d{6}[ -]\d{4,5}|\d{13,19})(?![\w-])"
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
_DIGITS = re.compile(r"\d[\d ().-]{7,}\d")


def redact_secrets(text: str) -> str:
    """Replace keys, tokens, passwords, e-mail addresses, card and phone numbers by marks such as ``[KEY]``.

    Card numbers are those that pass Luhn's check.

    Args:
        text: Any text.

    Returns:
        The text with ``[PRIVATE_KEY]``, ``[KEY]``, ``[TOKEN]``, ``[SECRET]`` (the value after a name such as
            ``password``), ``[CREDENTIALS]`` (of a URL), ``[EMAIL]``, ``[CARD]`` and ``[PHONE]`` in their places.
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


def redact_row(row: Any, redact: Redactor) -> Any:
    """Apply ``redact`` to every string of a JSON value, including keys and JSON inside strings, at any depth.

    A number whose digits ``redact`` changes becomes 0.
    """
    if isinstance(row, str):
        return _redact_text(row, redact)
    if isinstance(row, dict):
        return {redact(key): _redact_value(key, value, redact) for key, value in row.items()}
    if isinstance(row, list):
        return [redact_row(value, redact) for value in row]
    if isinstance(row, (int, float)) and not isinstance(row, bool):
        return row if redact(str(row)) == str(row) else 0
    return row


def _redact_value(key: str, value: Any, redact: Redactor) -> Any:
    """Redact a value, also where only its key gives it away, as in ``{"password": "tiger7"}``."""
    redacted = redact_row(value, redact)
    if not isinstance(value, str) or redacted != value or len(value) > _LONGEST_NAMED:
        return redacted
    named = redact(f"{key}: {value}")
    if named == f"{key}: {value}" or redact(key) != key:
        return value
    return named.removeprefix(f"{key}: ") if named.startswith(f"{key}: ") else "[SECRET]"


def _redact_text(text: str, redact: Redactor) -> str:
    """Redact a string; one that contains JSON stays valid JSON, unchanged where nothing was redacted."""
    if text[:1] in "{[" and text:
        try:
            value = json.loads(text)
        except ValueError:
            pass
        else:
            redacted = redact_row(value, redact)
            return text if redacted == value else json.dumps(redacted, ensure_ascii=False)
    redacted_text = redact(text)
    if not isinstance(redacted_text, str):
        raise TypeError(f"the redactor returned {type(redacted_text).__name__}, expected str")
    return redacted_text
