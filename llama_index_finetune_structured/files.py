"""Atomic files and folders: written beside their place, flushed to the disk, renamed into it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

__all__ = [
    "UNFINISHED",
    "read_json",
    "replacing",
    "replacing_folder",
    "sync",
    "sync_folder",
    "write_json",
    "write_public_text",
]

UNFINISHED = ".unfinished-"
"""Prefix of the name of a folder that is being written; a killed process may leave one behind."""


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A text file (UTF-8, mode 0600) that takes ``path``'s place when the block ends.

    Where the block or the disk fails, ``path`` stays as it was and nothing is left beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with open(handle, "w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes ``folder``'s place when the block ends, as :func:`replacing`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder.parent))
    try:
        yield unfinished
        sync_folder(unfinished)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's files, then the folder, to the disk."""
    for path in (*folder.iterdir(), folder):
        sync(path)


def sync(path: Path) -> None:
    """Flush one file or folder to the disk; a folder's entries are what a rename changes in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises OSError, or ValueError where the file holds anything else."""
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return value


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON to ``path`` atomically, readable by its owner only."""
    with replacing(path) as file:
        json.dump(value, file, indent=1, ensure_ascii=False)


def write_public_text(path: Path, text: str) -> Path:
    """Write ``text`` to ``path`` atomically, readable by everybody; returns ``path``.

    Half surrogate pairs, which UTF-8 cannot hold, are written as escapes.
    """
    with replacing(path) as file:
        file.write(text.encode("utf-8", "backslashreplace").decode())
    path.chmod(0o644)
    return path
