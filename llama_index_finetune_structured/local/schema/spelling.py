"""The JSON text of an answer as grammars spell it: compact, numbers without exponents, one escape for each character.

Python's spelling differs in two points that grammars refuse: 1e-05 where a number has limits, and a raw DEL.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

__all__ = ["LONGEST_NUMBER", "spelled_json"]

LONGEST_NUMBER = 40
"""Most characters of a number; chosen: more than a float's 17 digits with exponent, and than a 128-bit integer."""


def spelled_json(value: Any) -> str:
    """The text of a JSON value, keys in the given order. Raises ValueError for NaN and infinite numbers."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{_string(key)}:{spelled_json(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(spelled_json, value)) + "]"
    if isinstance(value, str):
        return _string(value)
    return _float(value) if isinstance(value, float) else json.dumps(value)


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _float(number: float) -> str:
    text = json.dumps(number, allow_nan=False)
    if "e" not in text:
        return text
    plain = f"{Decimal(text):f}"
    plain = plain if "." in plain else f"{plain}.0"
    return plain if len(plain) <= LONGEST_NUMBER else text
