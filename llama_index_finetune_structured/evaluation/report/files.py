"""Result files are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

from ...files import replacing

__all__ = ["write_whole"]


def write_whole(path: Path, text: str) -> Path:
    """Write ``text`` for anybody to read; half surrogate pairs, which UTF-8 cannot hold, are spelled out."""
    with replacing(path) as file:
        file.write(text.encode("utf-8", "backslashreplace").decode())
    path.chmod(0o644)
    return path
