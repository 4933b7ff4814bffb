"""Limits of numbers that the grammar compiler cannot express, or takes for others."""

from __future__ import annotations

from typing import Any

from ...json_schema import is_number

__all__ = ["translate_limits"]

_SIGNS = {"maximum": 1, "exclusiveMaximum": 1, "minimum": -1, "exclusiveMinimum": -1}
_LARGEST = 1e18  # llguidance's; numbers of a model's answers are smaller
_SMALLEST = 1e-15  # chosen: what stands for the smallest number above 0


def translate_limits(node: dict[str, Any]) -> None:
    """Remove a schema's limits that are too large to matter, and mend a range above 0 that ends below 1.

    In such a range, with 0 excluded, llguidance allows 0.
    """
    limits = {keyword: node[keyword] for keyword in _SIGNS if is_number(node.get(keyword))}
    if node.get("type") != "integer":
        for keyword in [keyword for keyword, limit in limits.items() if _SIGNS[keyword] * limit > _LARGEST]:
            del node[keyword]
    highest = min(limits.get("maximum", 1), limits.get("exclusiveMaximum", 1))
    if limits.get("exclusiveMinimum") == 0 and _SMALLEST < highest < 1:
        node["exclusiveMinimum"] = _SMALLEST
