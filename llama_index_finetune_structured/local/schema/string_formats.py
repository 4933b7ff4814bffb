"""String formats in grammars: those of JSON schema that llguidance supports, and patterns for others.

The patterns match text that Python's types accept. Except in URLs, repetitions are bounded, so that the text ends;
where a format allows more (host names, durations), the bound is chosen.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .decimal_patterns import decimal_range_pattern

__all__ = [
    "ANY_DECIMAL",
    "GRAMMAR_FORMATS",
    "KEY_PATTERNS",
    "LOOSE_PATTERNS",
    "PATTERNS",
    "SHORT_FORMATS",
    "decimal_digits",
    "expressible",
    "translate_string",
    "url_pattern",
]

SHORT_FORMATS = {"ipv4", "ipv6", "uuid"}
"""Formats whose values have a longest: they need no bound."""

GRAMMAR_FORMATS = {"hostname", "uri", *SHORT_FORMATS}
"""Formats that are left to the grammar's own definition."""

_DIGITS = 20  # of a decimal without limits; chosen
_YEAR = r"(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_LEAP_YEAR = r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_MONTH_AND_DAY = (
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    r"|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_DATE = f"(?:{_YEAR}-{_MONTH_AND_DAY}|{_LEAP_YEAR}-02-29)"
_CLOCK_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?"
_ZONE = "(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_TIME = f"{_CLOCK_TIME}{_ZONE}?"
_DAYS = r"[0-9]{1,5}D"
_SECONDS = r"[0-9]{1,5}(?:\.[0-9]{1,6})?S"
_CLOCK = f"T(?:[0-9]{{1,5}}H(?:[0-9]{{1,5}}M)?(?:{_SECONDS})?|[0-9]{{1,5}}M(?:{_SECONDS})?|{_SECONDS})"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"{_BYTE}(?:\.{_BYTE}){{3}}"


def _network_byte(bits: int) -> str:
    """The bytes of which only so many leading bits are set."""
    return f"(?:{'|'.join(str(byte) for byte in range(0, 256, 2 ** (8 - bits)))})"


def _network(prefix: int) -> str:
    """The IPv4 networks with a prefix of so many bits: the bits after it are 0."""
    free, bits = divmod(prefix, 8)
    parts = [_BYTE] * free + ([_network_byte(bits)] if bits else [])
    return "[.]".join([*parts, *["0"] * (4 - len(parts))]) + f"/{prefix}"


_IPV4_NETWORK = f"(?:{'|'.join([_IPV4, *map(_network, range(33))])})"
_HEX = "[0-9a-f]"
_GROUP = f"{_HEX}{{1,4}}"
_GROUPS = [
    f"{_GROUP}(?::{_GROUP}){{0,{most - 1}}}" for most in range(1, 8)
]  # at index n: from 1 to n + 1 groups
_COMPRESSED = [f"(?:{_GROUP}:){{{n}}}(?::|:{_GROUPS[6 - n]})" for n in range(1, 7)]
_IPV6 = f"(?:{_GROUP}(?::{_GROUP}){{7}}|::(?:{_GROUPS[6]})?|{'|'.join(_COMPRESSED)}|(?:{_GROUP}:){{7}}:)"
_IPV6_PREFIX = "/(?:12[0-8]|1[01][0-9]|[1-9]?[0-9])"
_BASE64 = "[A-Za-z0-9{0}]"
_BASE64_END = f"(?:{_BASE64}{{{{2}}}}==|{_BASE64}{{{{3}}}}=)?"
_ATOM = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
_LOCAL = rf"(?:{_ATOM}{{1,63}}|{_ATOM}{{1,31}}\.{_ATOM}{{1,31}}|(?:{_ATOM}{{1,14}}\.){{2,3}}{_ATOM}{{1,14}})"
_LABEL = "[A-Za-z0-9](?:-?[A-Za-z0-9]){0,28}"
_EMAIL = rf"{_LOCAL}@(?:{_LABEL}\.){{1,3}}[A-Za-z]{{2,18}}"

PATTERNS = {
    "email": f"^{_EMAIL}$",
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "aware-date-time": f"^{_DATE}T{_CLOCK_TIME}{_ZONE}$",
    "naive-date-time": f"^{_DATE}T{_CLOCK_TIME}$",
    "duration": f"^-?P(?:[0-9]{{1,5}}Y(?:{_DAYS})?(?:{_CLOCK})?|{_DAYS}(?:{_CLOCK})?|{_CLOCK})$",
    "base64": f"^(?:{_BASE64}{{{{4}}}})*{_BASE64_END}$".format("+/"),
    "base64url": f"^(?:{_BASE64}{{{{4}}}})*{_BASE64_END}$".format("_-"),
    "ipv6network": f"^{_IPV6}(?:{_IPV6_PREFIX})?$",
    "ipv6interface": f"^{_IPV6}(?:{_IPV6_PREFIX})?$",
    "ipv4network": f"^{_IPV4_NETWORK}$",
    "ipv4interface": f"^{_IPV4}(?:/(?:[12]?[0-9]|3[0-2]))?$",
    "ipvanyaddress": f"^(?:{_IPV4}|{_IPV6})$",
    "ipvanyinterface": f"^(?:{_IPV4}(?:/(?:[12]?[0-9]|3[0-2]))?|{_IPV6}(?:{_IPV6_PREFIX})?)$",
    "ipvanynetwork": f"^(?:{_IPV4_NETWORK}|{_IPV6}(?:{_IPV6_PREFIX})?)$",
    **{
        f"uuid{version}": f"^{_HEX}{{8}}-{_HEX}{{4}}-{version}{_HEX}{{3}}-[89ab]{_HEX}{{3}}-{_HEX}{{12}}$"
        for version in range(1, 9)
    },
}
"""Format -> anchored pattern."""

LOOSE_PATTERNS = {"ipv6network", "ipvanynetwork"}
"""Formats whose pattern lets through what classes refuse: bits of an IPv6 network after its prefix."""

_NAME = "[A-Za-z0-9_-]*[A-Za-z0-9_]"
_HOST = rf"(?:(?:[A-Za-z0-9_](?:{_NAME})?\.)*[A-Za-z_](?:{_NAME})?|{_IPV4}|\[{_IPV6}\])"
_USER = "(?:[A-Za-z0-9._~%!$&'()*+;=:-]{1,80}@)?"
_PORT = "(?::(?:6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3}))?"
_TEXT = r'[^\x00-\x20"\\]'
_REST = f"(?:[/?#]{_TEXT}*)?"
_REST_OF_SEVERAL = _REST.replace("[^", "[^,")


def url_pattern(schemes: Sequence[str], *, hosts: bool = False) -> str:
    """The pattern of URLs of these schemes that pydantic accepts and does not change, with user and port.

    ``hosts``: several hosts, separated by commas, are allowed. ``file`` URLs need no host.
    """
    scheme = f"(?:{'|'.join(map(re.escape, schemes))})"
    if tuple(schemes) == ("file",):
        return f"^{scheme}://(?:{_HOST})?/{_TEXT}*$"
    rest = f"(?:,{_HOST}{_PORT})*{_REST_OF_SEVERAL}" if hosts else _REST
    return f"^{scheme}://{_USER}{_HOST}{_PORT}{rest}$"


# The start of Pydantic's pattern of decimals up to 2.12, with the most digits before the point, and those after it.
_PYDANTIC_DECIMAL = re.compile(r"\^\(\?!\^\[-\+\.\]\*\$\)\[\+-\]\?0\*(?:\(\?:)?\\d(?:\*|\{0,(\d+)\})")
_PYDANTIC_PLACES = re.compile(r"\\\.\??\\d\{0,(\d+)\}")
# Lookaround, word boundaries, references to groups, and ends of text by other names than $.
_INEXPRESSIBLE = re.compile(r"(?<!\\)(?:\\\\)*(?:\(\?(?:=|!|<=|<!|>|P=)|\\[bBAzZGk1-9])")


ANY_DECIMAL = r"^-?(?:(?:0|[1-9][0-9]{0,19})(?:\.[0-9]{1,20})?|[0-9](?:\.[0-9]{1,20})?E[+-][0-9]{1,2})$"
"""Decimals without limits, as Python writes them: up to 20 digits before and after the point, or an exponent."""


KEY_PATTERNS = {
    "uuid": f"^{_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-{_HEX}{{12}}$",
    "ipv4": f"^{_IPV4}$",
    "ipv6": f"^{_IPV6}$",
}
"""Format -> anchored pattern, of the formats that grammars know for values but not for keys."""


def decimal_digits(pattern: str) -> tuple[int, int] | None:
    """Most digits before and after the point by Pydantic's pattern of a decimal; None for another pattern."""
    start = _PYDANTIC_DECIMAL.match(pattern)
    if start is None:
        return None
    places = _PYDANTIC_PLACES.search(pattern)
    return int(start[1] or _DIGITS), int(places[1]) if places else _DIGITS


def expressible(pattern: str) -> bool:
    """Whether a grammar can hold a pattern: it has no lookaround, word boundary or reference to a group."""
    return _INEXPRESSIBLE.search(pattern) is None


# Letters of all scripts would make the grammar compiler give up on patterns such as (\w+\.)+\d.
_WORD_CLASS = "a-zA-Z0-9_À-ÖØ-öø-ɏ"
_WORD = re.compile(r"\\w|\\.|\[|\]")


def _with_accents(pattern: str) -> str:
    r"""The pattern with \w as letters with accents too, which Rust and Python count among them; grammars do not."""
    within = False

    def written(match: re.Match[str]) -> str:
        nonlocal within
        if match[0] in "[]":
            within = match[0] == "["
        if match[0] != r"\w":
            return match[0]
        return _WORD_CLASS if within else f"[{_WORD_CLASS}]"

    return _WORD.sub(written, pattern)


def translate_string(node: dict[str, Any]) -> None:
    """Replace a schema's string format by its pattern, if it has one; remove what grammars do not support.

    Patterns are stricter: by the grammar's own formats a time can be 23:59:60 and a date the 30th of February.
    Pydantic's pattern of decimals has lookaround; here it is the canonical text of such numbers.
    """
    if (
        "enum" in node or "const" in node
    ):  # formats are checked by classes, and those have no values of another one
        node.pop("format", None)
    name = node.get("format")
    if name in PATTERNS and "pattern" not in node:
        node["pattern"] = PATTERNS[node.pop("format")]
    elif name not in GRAMMAR_FORMATS:
        node.pop("format", None)
    pattern = str(node.get("pattern", ""))
    if (digits := decimal_digits(pattern)) is not None:
        node["pattern"] = decimal_range_pattern(None, None, whole=digits[0], places=digits[1]) or ANY_DECIMAL
    elif not expressible(pattern):
        del node["pattern"]
    elif "pattern" in node:
        node["pattern"] = _with_accents(pattern)
