"""Contents of files, each under its SHA-256: written as a stream, whole or not at all, and kept once."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from anyio import to_thread
from sqlalchemy import Connection, select, union_all

from ..descriptors import lock
from ..files import rename
from .database import Database, files, jobs, parts
from .errors import ApiError

__all__ = ["Blob", "Blobs"]

_PART = ".part"
_CHUNK_BYTES = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ENDED = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class Blob:
    """A content that is on disk: ``size`` in bytes, and hashes."""

    sha256: str
    md5: str
    size: int


class Blobs:
    """The contents in ``folder``, which files, uploads and jobs of the database name."""

    def __init__(self, folder: Path, database: Database) -> None:
        self.folder, self._database = folder, database
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, sha256: str) -> Path:
        """Where the content is. The hash is from the database, never from a client."""
        assert _SHA256.fullmatch(sha256)
        return self.folder / sha256[:2] / sha256

    async def store(
        self, chunks: AsyncIterator[bytes], limit: int, record: Callable[[Connection, Blob], None]
    ) -> Blob:
        """Write a stream's content, and the row that names it by ``record``, in one transaction.

        Raises ApiError for more than ``limit`` bytes; then, or where anything else fails, nothing is left.
        """
        part = self.folder / f"{secrets.token_hex(16)}{_PART}"
        sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
        try:
            with open(part, "xb", opener=_private) as file:
                lock(file.fileno())
                async for chunk in chunks:
                    size += len(chunk)
                    if size > limit:
                        raise ApiError(
                            413,
                            f"The file has more than {limit:,} bytes: expected at most so many.",
                            param="file",
                            code="file_too_large",
                        )
                    sha256.update(chunk)
                    md5.update(chunk)
                    await to_thread.run_sync(file.write, chunk)
                file.flush()
                await to_thread.run_sync(os.fsync, file.fileno())
                blob = Blob(sha256.hexdigest(), md5.hexdigest(), size)
                await to_thread.run_sync(self._keep, part, blob, record)
        finally:
            part.unlink(missing_ok=True)
        return blob

    def _keep(self, part: Path, blob: Blob, record: Callable[[Connection, Blob], None]) -> None:
        target = self.path(blob.sha256)
        # All changes of contents are made inside a transaction that writes, which is one at a time, in any process.
        with self._database.write() as connection:
            is_new = not target.exists()
            try:
                if is_new:
                    target.parent.mkdir(exist_ok=True, mode=0o700)
                    rename(part, target)
                record(connection, blob)
            except BaseException:
                if is_new:
                    target.unlink(missing_ok=True)
                raise

    def discard(self, sha256s: Iterable[str]) -> None:
        """Remove those contents that no row names any more, after the transaction that removed the rows."""
        with self._database.write() as connection:
            for sha256 in set(sha256s) - _used(connection):
                self.path(sha256).unlink(missing_ok=True)

    def chunks(self, sha256: str) -> Iterator[bytes]:
        """The content, in pieces."""
        with self.path(sha256).open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk

    def clean_up(self) -> None:
        """Remove what killed processes left: their temporary files, and contents that no row names."""
        for part in self.folder.glob(f"*{_PART}"):
            with suppress(OSError), part.open("rb") as file:  # BlockingIOError: its process lives
                lock(file.fileno())
                part.unlink()
        with self._database.write() as connection:
            used = _used(connection)
            for path in self.folder.glob("??/*"):
                if path.name not in used:
                    path.unlink(missing_ok=True)


def _used(connection: Connection) -> set[str]:
    """The hashes of contents that files, uploads and jobs that have not ended need."""
    running = jobs.c.status.not_in(_ENDED)
    return set(
        connection.scalars(
            union_all(
                select(files.c.sha256),
                select(parts.c.sha256),
                select(jobs.c.training_sha256).where(running),
                select(jobs.c.validation_sha256).where(running, jobs.c.validation_sha256.is_not(None)),
            )
        )
    )


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
