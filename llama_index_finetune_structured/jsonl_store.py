"""Crash-safe append-only store of JSON lines: one synchronous append a record, one file a process.

A store at ``path`` is ``path`` itself, written by the process that holds its lock, and one shard
``path.shard-<ns>-<pid>`` for each further process (a forked worker, a second script). A record is
acknowledged when ``JsonlStore.append`` returns; a crash can tear at most the line that was being written.
The next process that writes to ``path`` removes a torn line there; at the end of a shard it stays, and readers
skip it.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from .descriptors import lock, open_regular, require_regular, write_all
from .errors import CaptureError
from .files import sync
from .forks import reset_after_fork
from .jsonl import MAX_LINE_BYTES, Line, read_lines, repair_tail, too_long

__all__ = ["JsonlStore", "read_shards", "shards_of"]

_MODE = 0o600
# The first bytes of a line of a capture, of its rejects and of the LLM calls kept by dataset.generate. Only a
# file that begins so may be emptied as a torn first line; any other file without JSON lines is not a store.
_LINE_STARTS = (b'{"messages"', b'{"reason"', b'{"key"')


class JsonlStore:
    """Append lines to ``path`` or, where another process holds its lock, to a shard beside it.

    ``fsync``: acknowledged records survive power loss (about 1 ms a record). Safe with threads and forks.
    Raises CaptureError where the path or its folder cannot be opened or created, or the path contains anything but
    JSON lines.
    """

    def __init__(self, path: str | os.PathLike[str], *, fsync: bool = False) -> None:
        self._fd: int | None = None
        self.path = Path(path).absolute()
        self._fsync = fsync
        self._lock = threading.RLock()
        self._torn_from: int | None = None
        reset_after_fork(self)

    def open(self) -> None:
        """Open and repair the file now instead of at the first record. Raises CaptureError."""
        with self._lock:
            self._ensure_open()

    def append(self, line: bytes) -> None:
        """Write one line; the record is on disk when this returns.

        Raises OSError where it cannot be written; then no part of it stays in the file.
        """
        if len(line) > MAX_LINE_BYTES:
            raise OSError(errno.EFBIG, f"the record {too_long()}", str(self.path))
        data = line + b"\n"
        with self._lock:
            fd = self._ensure_open()
            self._remove_torn(fd)
            start = os.fstat(fd).st_size
            try:
                write_all(fd, data)
                if self._fsync:
                    os.fsync(fd)
            except OSError:
                self._torn_from = start
                with contextlib.suppress(OSError):
                    self._remove_torn(fd)
                raise

    def close(self) -> None:
        """Close the file and release its lock; a later append opens it again."""
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
            self._fd = None

    def _remove_torn(self, fd: int) -> None:
        if (
            self._torn_from is not None
        ):  # this store is the only writer of the file, so the torn bytes are its last
            if os.fstat(fd).st_size > self._torn_from:
                os.ftruncate(fd, self._torn_from)
            self._torn_from = None

    def _ensure_open(self) -> int:
        if self._fd is not None and os.fstat(self._fd).st_nlink == 0:
            self.close()  # the file was deleted or replaced: a write to the old one would be lost
        if self._fd is None:
            self._fd = self._open_own_file()
            self._torn_from = None
        return self._fd

    def _open_own_file(self) -> int:
        _make_folder(self.path)
        fd = _open_append(self.path)
        try:
            if _lock_exclusively(fd):
                if os.fstat(fd).st_size:
                    _require_json_lines(self.path)
                repair_tail(fd)
            else:
                os.close(fd)
                fd = -1
                shard = f"{self.path}.shard-{time.time_ns():020d}-{os.getpid()}"
                fd = _open_append(Path(shard), os.O_EXCL)
                _lock_exclusively(fd)
            if self._fsync:
                sync(self.path.parent)
        except BaseException:
            if fd >= 0:
                os.close(fd)
            raise
        return fd

    def after_fork(self) -> None:
        """Close the parent's file and replace the lock, which another thread of the parent may have held."""
        self._lock = threading.RLock()
        self._close_quietly()

    def __del__(self) -> None:
        self._close_quietly()

    def _close_quietly(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            with contextlib.suppress(OSError):
                os.close(fd)


def _make_folder(path: Path) -> None:
    """Create the folder of ``path``. Raises CaptureError where that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CaptureError(
            f"{path}: its folder cannot be created ({error.strerror}); pass a path in a folder that you can write"
        ) from error


def _open_append(path: Path, extra_flags: int = 0) -> int:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | extra_flags
    try:
        _require_appendable(path)
        return os.open(path, flags, _MODE)
    except OSError as error:
        raise CaptureError(
            f"{path}: cannot be opened for writing ({error.strerror}); pass another path"
        ) from error


def _require_appendable(path: Path) -> None:
    """Raise OSError for a pipe, socket, device or folder: opening one could wait for ever, or lose the records."""
    with contextlib.suppress(FileNotFoundError):
        require_regular(os.stat(path).st_mode, path)


def _lock_exclusively(fd: int) -> bool:
    try:
        return lock(fd)  # where there are no locks, every process writes its own shard
    except BlockingIOError:
        return False


def _require_json_lines(path: Path) -> None:
    """Raise CaptureError where the first line is neither a JSON object nor begins like one of our lines."""
    with open_regular(path) as file:
        first = file.readline(MAX_LINE_BYTES)
    if first.startswith(_LINE_STARTS) or any(start.startswith(first) for start in _LINE_STARTS):
        return  # damaged, perhaps, but written by this package
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise CaptureError(f"{path}:1: expected a JSON object of an earlier capture; pass a new path")


def shards_of(path: str | os.PathLike[str]) -> list[Path]:
    """The files of a store: ``path`` first, then its shards in the order of their creation."""
    main = Path(path)
    shards = sorted(Path(name) for name in glob.glob(f"{glob.escape(str(main))}.shard-*"))
    return [main, *shards] if main.exists() or not shards else shards


def read_shards(path: str | os.PathLike[str]) -> Iterator[Line]:
    """Yield the lines of a store, file by file, as ``jsonl.read_lines`` reads each.

    Raises CaptureError where a file cannot be opened.
    """
    for file in shards_of(path):
        try:
            yield from read_lines(file)
        except OSError as error:
            raise CaptureError(f"{file}: cannot be read ({error.strerror}); expected a capture") from error
