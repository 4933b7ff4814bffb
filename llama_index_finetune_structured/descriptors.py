"""Work on open files: regular files alone, whole writes, and locks that end with the process."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows: nothing is locked
    fcntl = None  # type: ignore[assignment]

__all__ = ["UNSUPPORTED", "kind_of", "lock", "open_regular", "read_text_file", "require_regular", "write_all"]

_BLOCK_BYTES = 1 << 20
UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF}
"""Errors of a file system that has no locks, or cannot flush folders."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def kind_of(mode: int) -> str | None:
    """What a path with this mode is, such as "a folder"; None for a regular file."""
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no regular file")


def require_regular(mode: int, path: Path) -> None:
    """Raise OSError, whose ``strerror`` says what was found and expected, unless the mode is of a regular file."""
    kind = kind_of(mode)
    if kind is not None:
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(number, f"it is {kind}, expected a regular file", str(path))


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises OSError for a path that is anything else: opening a pipe would wait for a writer, and a device may never
    end.
    """
    flags = (
        os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    descriptor = os.open(path, flags)
    try:
        require_regular(os.fstat(descriptor).st_mode, path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_text_file(path: Path, *, max_bytes: int) -> str:
    """The text of a regular file (UTF-8, with or without byte order mark), line ends as ``\\n``.

    Raises UnicodeDecodeError, or OSError, also for a file of more than ``max_bytes``: a sparse one can be larger than
    the memory.
    """
    with open_regular(path) as file:
        left = 0 if os.fstat(file.fileno()).st_size > max_bytes else max_bytes + 1
        blocks: list[bytes] = []
        # In blocks, as read(n) takes n bytes of memory at once.
        while left and (block := file.read(min(left, _BLOCK_BYTES))):
            blocks.append(block)
            left -= len(block)
    if not left:
        raise OSError(errno.EFBIG, f"it has more than {max_bytes:,} bytes, expected fewer", str(path))
    return b"".join(blocks).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def write_all(descriptor: int, data: bytes) -> None:
    """Write all bytes, in several steps where the system takes only a part. Raises OSError, such as for a full disk."""
    left = memoryview(data)
    while left:
        written = os.write(descriptor, left)
        if written == 0:  # a device may take nothing without an error: trying on could last for ever
            raise OSError(errno.EIO, "nothing could be written")
        left = left[written:]


def lock(descriptor: int, *, wait: bool = False) -> bool:
    """Lock an open file until it is closed, which the system does when the process ends, in whatever way.

    False where the system or the file system has no such locks. Raises BlockingIOError where another process, or
    another opening in this one, holds the lock, unless ``wait`` is set.
    """
    if fcntl is None:  # pragma: no cover - Windows
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return False
        raise
    return True
