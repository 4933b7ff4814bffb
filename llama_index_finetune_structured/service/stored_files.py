"""Rows of files and uploads: what a key has stored, what it may store, and what has expired."""

from __future__ import annotations

import codecs
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal, NoReturn, cast

from sqlalchemy import Connection, delete, func, insert, select, update

from ..printable import one_line
from .blobs import Blob, Blobs
from .database import Database, Record, files, new_id, now, parts, uploads
from .errors import ApiError, invalid, not_found
from .keys import ApiKey

__all__ = [
    "Purpose",
    "add_file",
    "checked_text",
    "described_file",
    "file_of",
    "require_room",
    "stored_name",
    "sweep",
]

Purpose = Literal["fine-tune", "assistants", "batch", "user_data", "vision"]
"""What uploaded files may be for. Only files for fine-tuning are used; the others are kept."""
_LONGEST_NAME = 255
_LONGEST_FIRST_LINE = 1 << 20  # chosen: characters of a line that is read whole


def stored_name(name: str | None) -> str:
    """A file's name as it is kept: it is only shown. Raises ApiError for none, or one that is too long."""
    shown = one_line(name or "")
    if not 0 < len(shown) <= _LONGEST_NAME:
        raise invalid(f"The file's name has {len(shown)} characters: expected 1 to {_LONGEST_NAME}.", "file")
    return shown


def require_room(connection: Connection, key: ApiKey, more: int) -> None:
    """Raise ApiError where ``more`` bytes are beyond the key's quota."""
    of_files = select(func.coalesce(func.sum(files.c.bytes), 0)).where(files.c.owner == key.id)
    of_parts = (
        select(func.coalesce(func.sum(parts.c.bytes), 0))
        .join(uploads, parts.c.upload_id == uploads.c.id)
        .where(uploads.c.owner == key.id)
    )
    stored = connection.execute(of_files).scalar_one() + connection.execute(of_parts).scalar_one()
    if stored + more > key.max_stored_bytes:
        raise ApiError(
            429,
            f"This key has stored {stored:,} bytes and may store {key.max_stored_bytes:,}, so {more:,} more exceed its "
            "quota: delete files, or ask for more.",
            param="file",
            code="insufficient_quota",
            type="insufficient_quota",
        )


def add_file(
    connection: Connection,
    blob: Blob,
    *,
    owner: str,
    filename: str,
    purpose: str,
    seconds: int | None = None,
) -> str:
    """Add the row of a file that expires after so many seconds, and return its id."""
    made = now()
    row = {
        "id": new_id("file-"),
        "owner": owner,
        "created_at": made,
        "filename": filename,
        "purpose": purpose,
        "bytes": blob.size,
        "sha256": blob.sha256,
        "expires_at": None if seconds is None else made + seconds,
    }
    connection.execute(insert(files).values(row))
    return cast("str", row["id"])


def file_of(connection: Connection, owner: str, file_id: str, param: str | None = None) -> Record:
    """The row of a file. Raises ApiError (404) where the key has none of that id, or it has expired."""
    row = connection.execute(select(files).where(files.c.id == file_id, files.c.owner == owner)).one_or_none()
    if row is None or (row.expires_at is not None and row.expires_at <= now()):
        raise not_found("file", file_id, param)
    return row


def described_file(row: Record) -> dict[str, Any]:
    """The file object of the protocol."""
    names = ("id", "bytes", "created_at", "filename", "purpose")
    described = {name: row._mapping[name] for name in names} | {"object": "file", "status": "processed"}
    return described if row.expires_at is None else {**described, "expires_at": row.expires_at}


async def checked_text(chunks: AsyncIterator[bytes], purpose: str) -> AsyncIterator[bytes]:
    """The chunks of a file. Raises ApiError where it is for fine-tuning and no UTF-8 text of JSON objects by lines.

    Of the lines only the first is read, and of a very long one its first character: a job checks every line.
    """
    if purpose != "fine-tune":
        async for chunk in chunks:
            yield chunk
        return
    decoder, lines, first = codecs.getincrementaldecoder("utf-8-sig")(), 1, _FirstLine()
    async for chunk in chunks:
        try:
            text = decoder.decode(chunk)
        except UnicodeDecodeError as error:
            line = lines + error.object[: error.start].count(b"\n")
            raise invalid(f"Line {line} is not UTF-8: save the file as UTF-8.", "file") from None
        lines += text.count("\n")
        first.add(text)
        yield chunk
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise invalid(f"Line {lines} ends within a character: send the whole file.", "file") from None
    first.end()


class _FirstLine:
    """The first line of a file that is not blank. Raises ApiError where it is no JSON object."""

    def __init__(self) -> None:
        self._number, self._text, self._is_known = 1, "", False

    def add(self, more: str) -> None:
        if self._is_known:
            return
        text = self._text + more
        begun = text.lstrip()
        self._number += text[: len(text) - len(begun)].count("\n")
        self._text, end, _ = begun.partition("\n")
        if begun and begun[0] != "{":
            self._refuse(f"begins with {begun[0]!r}")
        if end:
            self._require_object()
        self._is_known |= len(self._text) > _LONGEST_FIRST_LINE

    def end(self) -> None:
        if self._text and not self._is_known:
            self._require_object()
        if not self._text:
            raise invalid("The file is empty: expected one JSON object a line.", "file")

    def _require_object(self) -> None:
        self._is_known = True
        try:
            json.loads(self._text)
        except (ValueError, RecursionError) as error:
            self._refuse(f"is no JSON ({error})")

    def _refuse(self, why: str) -> NoReturn:
        raise invalid(f"Line {self._number} {why}: expected JSON Lines, one JSON object a line.", "file")


def sweep(database: Database, blobs: Blobs) -> None:
    """Remove files and uploads that have expired."""
    time = now()
    with database.write() as connection:
        gone: Sequence[str] = connection.scalars(
            delete(files).where(files.c.expires_at <= time).returning(files.c.sha256)
        ).all()
        late = select(uploads.c.id).where(uploads.c.status == "pending", uploads.c.expires_at <= time)
        dropped: Sequence[str] = connection.scalars(
            delete(parts).where(parts.c.upload_id.in_(late)).returning(parts.c.sha256)
        ).all()
        connection.execute(update(uploads).where(uploads.c.id.in_(late)).values(status="expired"))
    blobs.discard([*gone, *dropped])
