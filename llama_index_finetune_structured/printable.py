"""Text from data, made safe to print: control characters are replaced by visible escapes.

The one boundary between text from outside and a terminal, a log, HTML, SVG or printed JSON.
"""

from __future__ import annotations

import logging
import re
import traceback

__all__ = ["escaped_json", "one_line", "package_logger", "printable"]

# Control characters (C0 but for tab and newline, DEL, C1), the line separators of Unicode, marks that change the
# direction of the text around them, deprecated format characters, half surrogate pairs, which no encoding can write,
# and what XML forbids. Characters without width stay: Persian, Indic scripts and emoji are written with them.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff\ufff9-\ufffb\ufffe\uffff]"
)
_UNPRINTABLE_JSON = re.compile(f"\t|{_UNPRINTABLE.pattern}")


def printable(text: str) -> str:
    """The text with control characters as escapes such as ``\\x1b``; tabs and newlines are kept.

    Names and answers may hold sequences that move a terminal's cursor or that XML forbids.
    """
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def one_line(text: str) -> str:
    """``printable`` with every run of white space collapsed to one space, for names within a line."""
    return " ".join(printable(text).split())


def escaped_json(text: str) -> str:
    """JSON with the characters that are not printable as JSON's own escapes: the same value, safe to print."""
    return _UNPRINTABLE_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def package_logger(name: str) -> logging.Logger:
    """The logger of a module, whose messages and tracebacks are printable: they hold names and servers' replies."""
    logger = logging.getLogger(name)
    if _make_printable not in logger.filters:
        logger.addFilter(_make_printable)
    return logger


def _make_printable(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), None
    if record.exc_info and record.exc_info[0] is not None:
        # Handlers print this text in place of what they would make of exc_info.
        record.exc_text = printable("".join(traceback.format_exception(*record.exc_info)).rstrip("\n"))
    return True
