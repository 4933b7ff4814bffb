"""Text from data as HTML or SVG text."""

from __future__ import annotations

from ...notebook_html import escape

__all__ = ["escape"]
