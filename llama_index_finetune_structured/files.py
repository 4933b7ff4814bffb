"""Atomic writes: a temporary file or folder beside the target is flushed to disk and renamed into place."""

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
"""Name prefix of a temporary folder; a killed process may leave one behind."""


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """Open a temporary text file (UTF-8, mode 0600) that replaces ``path`` when the block ends.

    Where the block or the disk fails, ``path`` is unchanged and the temporary file is removed.
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
    """Create an empty temporary folder that replaces ``folder`` when the block ends.

    Where the block or a flush fails, ``folder`` is unchanged and the temporary one is removed. Folders cannot be
    exchanged in one step: a failure between the removal of the old and the rename of the new leaves neither.
    """
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
    """Flush the files of a folder and then the folder itself to disk."""
    for path in (*folder.iterdir(), folder):
        sync(path)


def sync(path: Path) -> None:
    """Flush one file or folder to disk; flushing a folder makes renames inside it durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises OSError, or ValueError where the file contains anything else."""
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON to ``path`` atomically, readable by the owner only."""
    with replacing(path) as file:
        json.dump(value, file, indent=1, ensure_ascii=False)


def write_public_text(path: Path, text: str) -> Path:
    """Write ``text`` to ``path`` atomically with mode 0644; returns ``path``.

    Lone surrogates, which UTF-8 cannot encode, are written as escapes.
    """
    with replacing(path) as file:
        file.write(text.encode("utf-8", "backslashreplace").decode())
    path.chmod(0o644)
    return path
