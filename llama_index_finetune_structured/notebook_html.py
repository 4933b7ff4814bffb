"""HTML for notebooks: small tables and folded texts, everything from data escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape as html_escape

from .printable import one_line, printable

__all__ = ["escape", "folded", "plain_table", "shortened"]

_CHARACTERS = 200  # chosen: of a cell, which then has a few lines


def escape(text: str) -> str:
    """The text for an element or a quoted attribute, without the control characters that XML forbids."""
    return html_escape(printable(text))


def shortened(text: str) -> str:
    """The text on one line, without its end where it is long; escaped."""
    line = one_line(text)
    return escape(line if len(line) <= _CHARACTERS else f"{line[:_CHARACTERS]}…")


def folded(summary: str, html: str) -> str:
    """HTML that is shown on a click; the summary is text."""
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"


def plain_table(headings: Sequence[str], rows: Iterable[Sequence[str]], most: int = 10) -> str:
    """A table of texts, each cell shortened; of its rows all but the first ``most`` are folded."""
    lines = ["<tr>" + "".join(f"<td>{shortened(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    head = "<thead><tr>" + "".join(f"<th>{escape(heading)}</th>" for heading in headings) + "</tr></thead>"
    shown, rest = lines[:most], lines[most:]
    table = f"<table>{head}<tbody>{''.join(shown)}</tbody></table>"
    more = f"<table>{head}<tbody>{''.join(rest)}</tbody></table>"
    return table + (folded(f"{len(rest)} more", more) if rest else "")
