"""Atomic writes: a temporary file or folder beside the target is flushed to disk and renamed into place.

Only a regular file or nothing is replaced, and only a folder of nothing but files that are written again. A link
stays, and its target is replaced. The temporary file or folder of a process is locked while that process lives:
the next write to the same target removes those of processes that were killed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from .descriptors import UNSUPPORTED, lock, read_text_file, require_regular
from .errors import ConfigurationError
from .example import LINE_LEVELS, loads
from .locks import HeldFile, locked_file

__all__ = [
    "PUBLIC",
    "creating",
    "read_json",
    "remove_leftovers",
    "rename",
    "replacing",
    "replacing_folder",
    "sync",
    "sync_folder",
    "unwritable",
    "write_json",
    "write_text",
]

PRIVATE, PUBLIC = 0o600, 0o666
"""Modes of new files: of those that may contain captured text, and (less the umask) of those that never do."""
UNFINISHED = ".unfinished-"
"""Name prefix of a temporary folder; a killed process may leave one behind."""
_NAME_BYTES = 200  # chosen: of a target's name in a temporary one, below the limit of 255 bytes
_MAX_LINKS = 40  # as in Linux
_LOCK, _OLD, _NEW = "lock", "old", "new"  # in a temporary folder
_JSON_BYTES = 64 << 20  # chosen: a card with a hundred large schemas takes less than one MiB


@contextmanager
def replacing(path: Path, *, mode: int = PRIVATE) -> Iterator[TextIO]:
    """Open a temporary text file (UTF-8) that replaces ``path`` when the block ends.

    Lone surrogates, which UTF-8 cannot encode, are written as escapes, which are those of JSON.
    An existing file keeps its mode; ``mode`` is that of a new one. Where the block or the disk fails, ``path`` is
    unchanged and the temporary file is removed. Raises OSError where ``path`` is anything but a regular file or a
    link to one, or must not be written.
    """
    target = final_path(path)
    _require_replaceable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_parts(target)
    descriptor, part = _create_part(target, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            _require_replaceable(target)
            if os.name != "nt":
                rename(part, target)  # still locked
        if os.name == "nt":  # pragma: no cover - Windows renames no open file, and nothing is locked there
            rename(part, target)
    finally:
        part.unlink(missing_ok=True)


def final_path(path: Path) -> Path:
    """The path that a link leads to, through any number of links, whether that exists or not.

    Raises OSError for links that lead in a circle, and for paths in ``/dev`` and ``/proc``: these are devices and
    streams such as standard output, which cannot be replaced by a file.
    """
    given = path
    for _ in range(_MAX_LINKS):
        parent = Path(os.path.realpath(path.parent))
        if str(parent) == "/dev" or str(parent).startswith(("/dev/fd", "/proc/")):
            raise OSError(errno.EINVAL, "it is a device or a stream, expected the path of a file", str(given))
        try:
            path = parent / os.readlink(parent / path.name)
        except OSError:  # no link, or nothing there
            return parent / path.name
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(given))


def _require_replaceable(target: Path) -> None:
    """Raise OSError where ``target`` is there and no regular file that may be written."""
    with suppress(FileNotFoundError):
        require_regular(os.lstat(target).st_mode, target)
        if not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, "it is write-protected", str(target))


def _keep_mode(part: Path, target: Path) -> None:
    """Give a temporary file or folder the owner, group and mode of what it replaces.

    Only root can give the owner; where the group cannot be given, it gets no rights.
    """
    with suppress(OSError):  # nothing is replaced, or the file system has no modes
        old, new = os.stat(target), os.stat(part)
        mode = stat.S_IMODE(old.st_mode) & (0o3777 if stat.S_ISDIR(old.st_mode) else 0o777)
        for owner in (old.st_uid, -1):
            if (old.st_uid, old.st_gid) == (new.st_uid, new.st_gid):
                break
            with suppress(OSError):
                os.chown(part, owner, old.st_gid)
                break
        else:
            mode &= ~stat.S_IRWXG
        os.chmod(part, mode)


def _create_part(target: Path, mode: int) -> tuple[int, Path]:
    """Create and lock a temporary file beside ``target``; returns its descriptor, which closing unlocks."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    while True:
        part = target.with_name(f"{_part_prefix(target)}{secrets.token_hex(8)}.part")
        descriptor = os.open(part, flags, mode)
        try:
            lock(descriptor, wait=True)
            if os.fstat(descriptor).st_nlink:  # else removed as a leftover, before it was locked
                _keep_mode(part, target)
                return descriptor, part
        except BaseException:
            os.close(descriptor)
            part.unlink(missing_ok=True)
            raise
        os.close(descriptor)


def _part_prefix(target: Path) -> str:
    return f".{_shortened(target.name)}."


def _shortened(name: str) -> str:
    """The name, or where it is too long for one with more around it, a hash of it."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= _NAME_BYTES else hashlib.sha256(encoded).hexdigest()


def _remove_parts(target: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote ``target``."""
    pattern = re.compile(re.escape(_part_prefix(target)) + r"[0-9a-f]{16}\.part")
    with suppress(OSError):  # what cannot be removed is no reason not to write
        for name in os.listdir(target.parent):
            if pattern.fullmatch(name):
                _remove_dead_part(target.parent / name)


def _remove_dead_part(part: Path) -> None:
    with suppress(OSError):  # BlockingIOError: its process lives
        descriptor = os.open(part, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            if lock(descriptor):
                part.unlink()
        finally:
            os.close(descriptor)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Create an empty temporary folder (mode 0700, or that of the old one) that replaces ``folder`` at the end.

    Where the block or a flush fails, ``folder`` is unchanged and the temporary one is removed. A process killed
    between the two renames of the exchange leaves the old one aside; the next ``replacing_folder`` of the same
    folder, or ``remove_leftovers``, puts it back. Raises OSError where ``folder`` is no folder or contains files that
    the new one has not, BlockingIOError while another process writes it.
    """
    target = final_path(folder)
    with _holder(target) as holder:
        new = holder / _NEW / target.name
        new.mkdir(mode=0o700, parents=True)
        _keep_mode(new, target)
        yield new
        sync_folder(holder / _NEW)
        if os.path.lexists(target):
            _require_own(target, new)
            (holder / _OLD).mkdir()
            rename(target, holder / _OLD / target.name)
        rename(new, target)  # where it fails, leaving the holder puts the old one back


@contextmanager
def creating(path: Path) -> Iterator[Path]:
    """Yield a path at which the block writes a file or folder, which is renamed to ``path`` at the end.

    Everybody may read it, as far as the umask allows.
    Raises FileExistsError where ``path`` exists, at the start or at the end, BlockingIOError while another process
    writes it, and OSError where the disk fails.
    """
    target = final_path(path)
    with _holder(target) as holder:
        _require_absent(target)
        new = holder / _NEW / target.name
        new.parent.mkdir()
        yield new
        _open_to_all(new.parent)
        sync_folder(new.parent)
        _require_absent(target)
        rename(new, target)


def _open_to_all(folder: Path) -> None:
    """Let everybody read the files in a folder just created, as its mode says that the umask allows.

    Libraries differ: some write files for the owner alone.
    """
    mode = PUBLIC & folder.stat().st_mode
    for path in folder.rglob("*"):
        with suppress(OSError):  # the file system has no modes
            os.chmod(path, mode | stat.S_IMODE(path.stat().st_mode) if path.is_dir() else mode)


def _require_absent(target: Path) -> None:
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "it exists already", str(target))


def _require_own(folder: Path, new: Path) -> None:
    """Raise OSError unless ``folder`` is one, with no file that ``new`` has not: such a file would be lost."""
    if not stat.S_ISDIR(os.lstat(folder).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "it is no folder", str(folder))
    others = sorted(_names(folder) - _names(new))
    if others:
        raise OSError(
            errno.ENOTEMPTY,
            f"it contains {', '.join(others[:3])}, which would be lost; move that away",
            str(folder),
        )


def _names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@contextmanager
def _holder(target: Path) -> Iterator[Path]:
    """The temporary folder, beside ``target``, of the one process that writes ``target``: locked, and emptied."""
    target.parent.mkdir(parents=True, exist_ok=True)
    holder = target.parent / f"{UNFINISHED}{_shortened(target.name)}"
    held = _take(holder)
    try:
        _settle(holder)
        yield holder
    finally:
        try:
            _settle(holder)
            _remove_holder(holder)
        finally:
            held.close()


def _take(holder: Path) -> HeldFile:
    """Create and lock a temporary folder. Raises BlockingIOError where another process holds it."""
    while True:
        with suppress(FileExistsError):
            holder.mkdir(mode=0o700)
        with suppress(FileNotFoundError):  # its process has just removed it
            if not stat.S_ISDIR(os.lstat(holder).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, "it is no folder; move it away", str(holder))
            return locked_file(holder / _LOCK)


def _settle(holder: Path) -> None:
    """Put back an old folder whose new one did not come to its place, and remove all else but the lock.

    Raises OSError where it cannot be put back; then it stays where it is.
    """
    for path in (holder / _OLD, holder / _NEW):
        if path.is_symlink():  # not of this package: nothing is moved or removed where it leads
            path.unlink()
    for old in (holder / _OLD).glob("*"):
        target = holder.parent / old.name
        if not os.path.lexists(target):
            rename(old, target)
    for path in (holder / _OLD, holder / _NEW):
        shutil.rmtree(path, ignore_errors=True)


def _remove_holder(holder: Path) -> None:
    """Remove a settled temporary folder; one that cannot be removed is left for the next write."""
    with suppress(OSError):
        (holder / _LOCK).unlink()
        holder.rmdir()


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary folders of processes that were killed, and put back old folders that they left aside."""
    for left in folder.glob(f"{UNFINISHED}*"):
        with suppress(OSError):  # BlockingIOError: its process lives
            held = _take(left)
            try:
                _settle(left)
                _remove_holder(left)
            finally:
                held.close()


def rename(source: Path, target: Path) -> None:
    """Rename what is flushed to disk already, in place of what is at ``target``, and flush the target's folder."""
    os.replace(source, target)
    sync(target.parent)


def sync_folder(folder: Path) -> None:
    """Flush to disk the files and folders in a folder, at any depth, and then the folder itself."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                sync(path)
        sync(Path(parent))


def sync(path: Path) -> None:
    """Flush one file or folder to disk; flushing a folder makes renames inside it durable.

    A folder that cannot be opened, or flushed on its file system, is left to the system.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():  # one without the right to list it; on Windows every one
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED or not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of at most 64 MiB from a regular file. Raises OSError, or ValueError for anything else."""
    value = loads(read_text_file(path, max_bytes=_JSON_BYTES), LINE_LEVELS)
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {type(value).__name__}")
    return value


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON to ``path`` atomically; a new file is readable by the owner only. Raises OSError."""
    with replacing(path) as file:
        json.dump(value, file, indent=1, ensure_ascii=False)


def write_text(path: Path, text: str, *, mode: int = PRIVATE) -> Path:
    """Write ``text`` to ``path`` atomically, a new file with ``mode``; returns ``path``.

    Raises ConfigurationError where it cannot be written.
    """
    try:
        with replacing(path, mode=mode) as file:
            file.write(text)
    except OSError as error:
        raise unwritable(path, error) from error
    return path


def unwritable(path: Path, error: OSError) -> ConfigurationError:
    """The error for a path that a user gave and that cannot be written."""
    return ConfigurationError(
        f"{path}: cannot be written ({error.strerror or error}); free disk space, or give the path of a file in a "
        "folder that you can write"
    )
