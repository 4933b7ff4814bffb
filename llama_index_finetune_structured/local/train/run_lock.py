"""A lock on a run's folder, so that two processes never work in one: each would delete the other's files."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import CheckpointError, EngineError
from ...forks import reset_after_fork

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows: runs are not kept apart
    fcntl = None  # type: ignore[assignment]

__all__ = ["locked_run"]

_NAME = ".lock"


class _Lock:
    """The open lock file. A forked child closes it: otherwise it would hold the lock after its parent's end."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        reset_after_fork(self)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def after_fork(self) -> None:
        self.close()


@contextmanager
def locked_run(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder, which is created, inside the block.

    The system releases the lock when the process ends, in whatever way. Raises EngineError, with the id of the
    process that works there, or CheckpointError where the folder cannot be written.
    """
    path = folder / _NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # opening a pipe could wait for ever
            raise OSError(errno.EINVAL, "it is no file")
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(path, flags, 0o600)  # never the target of a link: its content would be lost
    except OSError as error:
        raise CheckpointError(
            f"{path}: could not be written ({error.strerror}): free disk space, or fix or remove what is at this path, "
            "and run the same again"
        ) from error
    lock = _Lock(descriptor)
    try:
        _take(descriptor, folder)
        yield
    finally:
        lock.close()


def _take(descriptor: int, folder: Path) -> None:
    """Lock the file and write this process's id into it. Raises EngineError where another holds it."""
    if fcntl is None:  # pragma: no cover - Windows
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(descriptor, 20).decode("ascii", "replace").strip()
        raise EngineError(
            f"{folder}: process {holder or 'of another run'} is at work there: wait until it has ended, or choose "
            "another output folder"
        ) from error
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
