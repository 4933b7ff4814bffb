"""A lock on an output folder, so that two processes never work in one: each would undo the other's work."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .descriptors import lock, require_regular, write_all
from .errors import CheckpointError, EngineError
from .forks import reset_after_fork

__all__ = ["HeldFile", "locked_file", "locked_folder"]

_NAME = ".lock"


class HeldFile:
    """An open lock file. A forked child closes it: otherwise it would hold the lock after its parent's end."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        reset_after_fork(self)

    def close(self) -> None:
        """Close the file, which releases its lock."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def after_fork(self) -> None:
        """Close the child's copy."""
        self.close()


def locked_file(path: Path) -> HeldFile:
    """Create or open a lock file, lock it, and write this process's id into it.

    Raises OSError where it cannot be written, or BlockingIOError, whose ``strerror`` names the process that holds
    the lock.
    """
    with suppress(FileNotFoundError):
        require_regular(os.lstat(path).st_mode, path)  # opening a pipe could wait
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
    # Never a link's target: its content would be lost.
    held = HeldFile(descriptor := os.open(path, flags, 0o600))
    try:
        holder = os.read(descriptor, 20).decode("ascii", "replace").strip()
        try:
            lock(descriptor)
        except BlockingIOError:
            reason = f"process {holder or 'of another run'} is at work there"
            raise BlockingIOError(errno.EAGAIN, reason, str(path)) from None
        if not os.fstat(descriptor).st_nlink:
            raise FileNotFoundError(errno.ENOENT, "it was removed meanwhile", str(path))
        if holder and not holder.isdecimal():
            raise OSError(errno.EEXIST, "it is a file of another program, expected a lock file", str(path))
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        write_all(descriptor, f"{os.getpid()}\n".encode())
    except BaseException:
        held.close()
        raise
    return held


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of an output folder, which is created, inside the block.

    The system releases the lock when the process ends, in whatever way; on a network file system the lock holds
    between hosts where that file system's locks do. Raises EngineError, with the id of the process that works
    there, or CheckpointError where the folder cannot be written.
    """
    path = folder / _NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = locked_file(path)
    except BlockingIOError as error:
        raise EngineError(
            f"{folder}: {error.strerror}: wait until it has ended, or choose another output folder"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{path}: could not be written ({error.strerror}): free disk space, or fix or remove what is at this path, "
            "and run the same again"
        ) from error
    try:
        yield
    finally:
        held.close()
