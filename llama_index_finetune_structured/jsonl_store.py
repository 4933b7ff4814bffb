"""The crash-safe store: one synchronous append a record, one file a process, torn tails repaired.

A capture at ``path`` is ``path`` itself, written by the process that holds its lock, and one shard
``path.shard-<ns>-<pid>`` for each further process (a forked worker, a second script). A record is
acknowledged when :meth:`Store.append` returns; a crash can cut at most the line that was being written.
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

from .errors import CaptureError, DatasetError
from .example import Example
from .files import sync
from .forks import tell_after_fork

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows: every process writes a shard of its own
    fcntl = None  # type: ignore[assignment]

__all__ = ["Store", "is_json", "read_examples", "read_lines", "shards_of"]

_MODE = 0o600
_FIRST = (b'{"messages"', b'{"reason"', b'{"key"')  # how the lines of captures, rejects and paid calls begin


class Store:
    """Appends lines to ``path`` or, where another process holds it, to a shard beside it.

    ``fsync`` makes an acknowledged record survive power loss (about 1 ms a record). Thread- and fork-safe.
    Raises CaptureError where the path cannot be opened or holds something else than JSON lines.
    """

    def __init__(self, path: str | os.PathLike[str], *, fsync: bool = False) -> None:
        self.path = Path(path).absolute()
        self._fsync = fsync
        self._fd: int | None = None
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
            self._mend(fd)
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
                    self._mend(fd)
                raise

    def close(self) -> None:
        """Close the file and give its lock back; a later append opens it again."""
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
            self._fd = None

    def _mend(self, fd: int) -> None:
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
                _repair_tail(fd, self.path)
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
        """In a child: leave the parent's file to the parent, with a lock that nobody holds."""
        self._lock = threading.RLock()
        self.__del__()
        self._fd = None

    def __del__(self) -> None:
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.close(self._fd)


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


def _repair_tail(fd: int, path: Path) -> None:
    """Drop a last line that a crash cut short; end a whole one that lacks its newline."""
    size = os.fstat(fd).st_size
    if size == 0:
        return
    _refuse_foreign_file(path)
    if os.pread(fd, 1, size - 1) == b"\n":
        return
    start = _last_line_start(fd, size)
    if is_json(os.pread(fd, size - start, start)):
        os.write(fd, b"\n")
    else:
        os.ftruncate(fd, start)


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


def _last_line_start(fd: int, size: int) -> int:
    block = 1 << 16
    end = size
    while end > 0:
        begin = max(0, end - block)
        at = os.pread(fd, end - begin, begin).rfind(b"\n")
        if at >= 0:
            return begin + at + 1
        end = begin
    return 0


def shards_of(path: str | os.PathLike[str]) -> list[Path]:
    """The files of a capture: ``path`` first, then its shards in the order in which they were begun."""
    main = Path(path)
    shards = sorted(Path(name) for name in glob.glob(f"{glob.escape(str(main))}.shard-*"))
    return [main, *shards] if main.exists() or not shards else shards


def read_lines(path: str | os.PathLike[str]) -> Iterator[tuple[Path, int, str]]:
    """(file, line number, line) over all shards; a torn last line is left out, as it was never acknowledged.

    Safe while a capture is being written. Raises CaptureError where there is no such file.
    """
    for file in shards_of(path):
        try:
            stream = open(file, "rb")  # noqa: SIM115 - closed below
        except OSError as error:
            raise CaptureError(f"{file}: no capture can be read here ({error.strerror})") from error
        with stream:
            for number, raw in enumerate(stream, 1):
                if not raw.endswith(b"\n") and not is_json(raw):
                    break
                line = raw.decode("utf-8", "replace").strip()
                if line:
                    yield file, number, line


def is_json(raw: bytes) -> bool:
    """Whether the bytes are one JSON value that Python can read."""
    try:
        json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return True


def read_examples(path: str | os.PathLike[str]) -> Iterator[Example]:
    """The Examples of a capture, or of a file of canonical Examples, in a stable order.

    Raises CaptureError where there is no file, DatasetError with file:line for a line that is no Example.
    """
    for file, number, line in read_lines(path):
        try:
            yield Example.from_json(line)
        except (ValueError, RecursionError) as error:
            raise DatasetError(
                f"{file}:{number}: expected a captured Example: {_first_line(error)}"
            ) from error


def _first_line(error: Exception) -> str:
    errors = getattr(error, "errors", None)
    if callable(errors):
        first = errors(include_input=False, include_url=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error).splitlines()[0]
