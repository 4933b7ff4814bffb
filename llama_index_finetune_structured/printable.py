"""Text from data, made safe to print: control characters are replaced by visible escapes."""

from __future__ import annotations

import re

__all__ = ["one_line", "printable"]

# Control characters (C0 but for tab and newline, DEL, C1), marks that change the direction of the text around them,
# and half surrogate pairs, which no encoding can write.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """The text with control characters as escapes such as ``\\x1b``; tabs and newlines are kept.

    Names and answers may hold sequences that move a terminal's cursor or that XML forbids.
    """
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def one_line(text: str) -> str:
    """``printable`` with every run of white space collapsed to one space, for names within a line."""
    return " ".join(printable(text).split())
