"""JSON files that carry their own SHA-256, so that damage to them is noticed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .example import content_hash
from .files import read_json

__all__ = ["read_checked_json", "with_checksum"]

_KEY = "sha256"


def with_checksum(value: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object with the SHA-256 of its canonical form, under ``sha256``.

    Raises ValueError for NaN and infinity, which JSON cannot hold.
    """
    return {**value, _KEY: content_hash(dict(value))}


def read_checked_json(path: Path) -> dict[str, Any]:
    """Read what ``with_checksum`` gave, without the checksum. Raises OSError, or ValueError for a damaged file."""
    value = read_json(path)
    checksum = value.pop(_KEY, None)
    if checksum is None:
        raise ValueError("it has no checksum: an earlier version wrote it")
    if checksum != content_hash(value):
        raise ValueError("its content does not match its checksum")
    return value
