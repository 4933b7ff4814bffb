"""The crash-safe store: one synchronous append a record, one file a process, torn tails repaired.

A capture at ``path`` is ``path`` itself, written by the process that holds its lock, and one shard
``path.shard-<ns>-<pid>`` for each further process (a forked worker, a second script). A record is
acknowledged when :meth:`JsonlStore.append` returns; a crash can cut at most the line that was being written.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from .errors import CaptureError
from .files import sync
from .forks import tell_after_fork
from .jsonl import Line, read_lines, repair_tail

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows: every process writes a shard of its own
    fcntl = None  # type: ignore[assignment]

__all__ = ["JsonlStore", "read_shards", "shards_of"]

_MODE = 0o600
_FIRST = (b'{"messages"', b'{"reason"', b'{"key"')  # how the lines of captures, rejects and paid calls begin


class JsonlStore:
    """Appends lines to ``path`` or, where another process holds it, to a shard beside it.

    ``fsync`` makes an acknowledged record survive power loss (about 1 ms a record). Thread- and fork-safe.
    Raises CaptureError where the path cannot be opened or holds something else than JSON lines.
    """

    def __init__(self, path: str | os.PathLike[str], *, fsync: bool = False) -> None:
        self._fd: int | None = None
        self.path = Path(path).absolute()
        self._fsync = fsync
        self._lock = threading.RLock()
        self._torn_bytes = 0
        tell_after_fork(self)

    def open(self) -> None:
        """Open (and repair) the file now instead of at the first record."""
        with self._lock:
            self._ensure_open()

    def append(self, line: bytes) -> None:
        """Write one line; when this returns the record is kept. Raises OSError, leaving no part of it."""
        data = line + b"\n"
        with self._lock:
            fd = self._ensure_open()
            self._remove_torn(fd)
            written = 0
            try:
                written = os.write(fd, data)
                if written != len(data):
                    raise OSError(f"{self.path}: only {written} of {len(data)} bytes fitted on the disk")
                if self._fsync:
                    os.fsync(fd)
            except OSError:
                self._torn_bytes = written
                with contextlib.suppress(OSError):
                    self._remove_torn(fd)
                raise

    def close(self) -> None:
        """Close the file and give its lock back; a later append opens it again."""
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
            self._fd = None

    def _remove_torn(self, fd: int) -> None:
        if self._torn_bytes:  # ours is the only writer of this file, so they are its last
            os.ftruncate(fd, os.fstat(fd).st_size - self._torn_bytes)
            self._torn_bytes = 0

    def _ensure_open(self) -> int:
        if self._fd is not None and os.fstat(self._fd).st_nlink == 0:
            self.close()  # another file has taken its place: what came now would be in none
        if self._fd is None:
            self._fd = self._open_own_file()
            self._torn_bytes = 0
        return self._fd

    def _open_own_file(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = _open_append(self.path)
        try:
            if _lock_exclusively(fd):
                if os.fstat(fd).st_size:
                    _refuse_foreign_file(self.path)
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

    def forked(self) -> None:
        """In a forked child: close the parent's file, and replace the lock, which another thread may have held."""
        self._lock = threading.RLock()
        self._close_quietly()

    def __del__(self) -> None:
        self._close_quietly()

    def _close_quietly(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            with contextlib.suppress(OSError):
                os.close(fd)


def _open_append(path: Path, extra_flags: int = 0) -> int:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | extra_flags
    try:
        return os.open(path, flags, _MODE)
    except OSError as error:
        raise CaptureError(
            f"{path}: cannot be opened for writing ({error.strerror}); pass another path"
        ) from error


def _lock_exclusively(fd: int) -> bool:
    if fcntl is None:  # pragma: no cover - Windows
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _refuse_foreign_file(path: Path) -> None:
    with open(path, "rb") as file:
        first = file.readline()
    if not first.endswith(b"\n") and any(first.startswith(own) or own.startswith(first) for own in _FIRST):
        return
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise CaptureError(f"{path}:1: expected a JSON object of an earlier capture; pass a new path")


def shards_of(path: str | os.PathLike[str]) -> list[Path]:
    """The files of a capture: ``path`` first, then its shards in the order in which they were begun."""
    main = Path(path)
    shards = sorted(Path(name) for name in glob.glob(f"{glob.escape(str(main))}.shard-*"))
    return [main, *shards] if main.exists() or not shards else shards


def read_shards(path: str | os.PathLike[str]) -> Iterator[Line]:
    """The lines of a capture, file after file, as :func:`jsonl.read_lines` reads each.

    Raises CaptureError where there is no such file.
    """
    for file in shards_of(path):
        try:
            yield from read_lines(file)
        except OSError as error:
            raise CaptureError(f"{file}: no capture can be read here ({error.strerror})") from error
