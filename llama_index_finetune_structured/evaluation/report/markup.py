"""Text from data as HTML or SVG text: escaped, and without the control characters that XML forbids."""

from __future__ import annotations

from html import escape as html_escape

from ...printable import printable

__all__ = ["escape"]


def escape(text: str) -> str:
    """The text for an element or a quoted attribute."""
    return html_escape(printable(text))
