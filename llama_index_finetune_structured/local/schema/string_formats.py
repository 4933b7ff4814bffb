"""String formats in grammars: those of JSON schema that llguidance supports, and patterns for others.

The patterns match text that Python's types accept. Except in URLs, repetitions are bounded, so that the text ends;
where a format allows more (host names, durations), the bound is chosen.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["GRAMMAR_FORMATS", "PATTERNS", "SHORT_FORMATS", "url_pattern"]

SHORT_FORMATS = {"ipv4", "ipv6", "uuid"}
"""Formats whose values have a longest: they need no bound."""

GRAMMAR_FORMATS = {"hostname", "uri", *SHORT_FORMATS}
"""Formats that are left to the grammar's own definition."""

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
_NETWORKS = [rf"(?:{_BYTE}\.){{3}}0/24", rf"(?:{_BYTE}\.){{2}}0\.0/16", rf"{_BYTE}\.0\.0\.0/8"]
_IPV4_NETWORK = f"(?:{'|'.join([f'{_IPV4}(?:/32)?', *_NETWORKS])})"
_HEX = "[0-9a-f]"
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
    "duration": f"^P(?:[0-9]{{1,5}}Y(?:{_DAYS})?(?:{_CLOCK})?|{_DAYS}(?:{_CLOCK})?|{_CLOCK})$",
    "ipv4network": f"^{_IPV4_NETWORK}$",
    "ipv4interface": f"^{_IPV4}(?:/(?:[12]?[0-9]|3[0-2]))?$",
    **{
        f"uuid{version}": f"^{_HEX}{{8}}-{_HEX}{{4}}-{version}{_HEX}{{3}}-[89ab]{_HEX}{{3}}-{_HEX}{{12}}$"
        for version in range(1, 9)
    },
}
"""Format -> anchored pattern."""

_GROUP = f"{_HEX}{{1,4}}"
_IPV6 = rf"\[(?:{_GROUP}(?::{_GROUP}){{7}}|(?:{_GROUP}(?::{_GROUP}){{0,4}})?::(?:{_GROUP}(?::{_GROUP})?)?)\]"
_NAME = "[A-Za-z0-9_-]*[A-Za-z0-9_]"
_HOST = rf"(?:(?:[A-Za-z0-9_](?:{_NAME})?\.)*[A-Za-z_](?:{_NAME})?|{_IPV4}|{_IPV6})"
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
