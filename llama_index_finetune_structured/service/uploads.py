"""Uploads of large files in parts: ``/v1/uploads``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.concurrency import iterate_in_threadpool, run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, delete, func, insert, select, update

from .app_state import blobs_of, database_of, service_settings
from .blobs import Blob
from .database import Database, Record, files, new_id, now, parts, uploads
from .errors import ApiError, invalid, not_found
from .forms import ExpiresAfter, chunks_of, described_form, file_in, form_of
from .keys import ApiKey, scoped
from .stored_files import (
    Purpose,
    add_file,
    checked_text,
    described_file,
    require_room,
    stored_name,
)

__all__ = ["router"]

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])
UploadsKey = Annotated[ApiKey, Depends(scoped("files"))]
_SECONDS = 3600  # an upload expires an hour after it was created, as OpenAI's


class CreateUpload(BaseModel):
    """The body of ``POST /v1/uploads``."""

    model_config = ConfigDict(extra="forbid")

    filename: Annotated[str, Field(min_length=1, max_length=255)]
    purpose: Purpose
    bytes: Annotated[int, Field(strict=True, gt=0)]
    mime_type: Annotated[str, Field(max_length=255)]
    expires_after: ExpiresAfter | None = None


class CompleteUpload(BaseModel):
    """The body of ``POST /v1/uploads/{upload_id}/complete``."""

    model_config = ConfigDict(extra="forbid")

    part_ids: Annotated[list[str], Field(min_length=1, max_length=10_000)]
    md5: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{32}$")] | None = None


@router.post("")
def create_upload(request: Request, key: UploadsKey, body: CreateUpload) -> dict[str, Any]:
    """Begin an upload."""
    limit = service_settings(request).max_file_bytes
    if body.bytes > limit:
        raise invalid(f"A file may have at most {limit:,} bytes.", "bytes", code="file_too_large")
    made = now()
    row = {
        "id": new_id("upload_"),
        "owner": key.id,
        "created_at": made,
        "filename": stored_name(body.filename),
        "purpose": body.purpose,
        "bytes": body.bytes,
        "status": "pending",
        "expires_at": made + _SECONDS,
        "file_seconds": None if body.expires_after is None else body.expires_after.seconds,
    }
    with database_of(request).write() as connection:
        require_room(connection, key, body.bytes)
        connection.execute(insert(uploads).values(row))
        return _described(connection, _upload(connection, key, str(row["id"])))


@router.post("/{upload_id}/parts", openapi_extra=described_form("data"))
async def add_part(request: Request, key: UploadsKey, upload_id: str) -> dict[str, Any]:
    """Add a part, in any order; ``complete`` names the order."""
    row = {"id": new_id("part_"), "upload_id": upload_id, "created_at": now()}

    def require_pending() -> None:
        with database_of(request).read() as connection:
            _pending(connection, key, upload_id)

    def record(connection: Connection, blob: Blob) -> None:
        upload = _pending(connection, key, upload_id)
        sent = select(func.coalesce(func.sum(parts.c.bytes), 0)).where(parts.c.upload_id == upload_id)
        if (connection.scalar(sent) or 0) + blob.size > upload.bytes:
            raise invalid(f"The parts have more than the upload's {upload.bytes:,} bytes.", "data")
        require_room(connection, key, blob.size)
        connection.execute(insert(parts).values(**row, bytes=blob.size, sha256=blob.sha256))

    await run_in_threadpool(require_pending)  # before the body is read
    async with form_of(request) as form:
        content = chunks_of(file_in(form, "data"))
        await blobs_of(request).store(content, service_settings(request).max_part_bytes, record)
    return {**row, "object": "upload.part"}


@router.post("/{upload_id}/complete")
async def complete_upload(
    request: Request, key: UploadsKey, upload_id: str, body: CompleteUpload
) -> dict[str, Any]:
    """Make a file of the parts."""
    database, blobs = database_of(request), blobs_of(request)

    def read() -> tuple[Record, list[Record]]:
        with database.read() as connection:
            return _pending(connection, key, upload_id), _parts(connection, upload_id, body.part_ids)

    upload, chosen = await run_in_threadpool(read)
    size = sum(part.bytes for part in chosen)
    if size != upload.bytes:
        raise invalid(
            f"The parts have {size:,} bytes; expected {upload.bytes:,}, as the upload was created.",
            "part_ids",
        )

    async def content() -> AsyncIterator[bytes]:
        for part in chosen:
            async for chunk in iterate_in_threadpool(blobs.chunks(part.sha256)):
                yield chunk

    def record(connection: Connection, blob: Blob) -> None:
        _pending(connection, key, upload_id)
        if body.md5 is not None and body.md5.lower() != blob.md5:
            raise invalid(
                f"The md5 of the parts is {blob.md5}: send them again, or name them in another order.", "md5"
            )
        connection.execute(delete(parts).where(parts.c.upload_id == upload_id))
        require_room(connection, key, blob.size)
        file_id = add_file(
            connection, blob, owner=key.id, filename=upload.filename, purpose=upload.purpose,
            seconds=upload.file_seconds,
        )  # fmt: skip
        _set(connection, upload_id, status="completed", file_id=file_id)

    every = await run_in_threadpool(_contents, database, upload_id)
    try:
        await blobs.store(checked_text(content(), upload.purpose), size, record)
    except FileNotFoundError:  # a part's: the upload was cancelled meanwhile
        raise invalid("The upload is not pending any more.") from None
    await run_in_threadpool(blobs.discard, every)
    return await run_in_threadpool(_reply, database, key, upload_id)


@router.post("/{upload_id}/cancel")
def cancel_upload(request: Request, key: UploadsKey, upload_id: str) -> dict[str, Any]:
    """Drop an upload and its parts."""
    with database_of(request).write() as connection:
        _pending(connection, key, upload_id)
        gone: Sequence[str] = connection.scalars(
            delete(parts).where(parts.c.upload_id == upload_id).returning(parts.c.sha256)
        ).all()
        _set(connection, upload_id, status="cancelled")
    blobs_of(request).discard(gone)
    return _reply(database_of(request), key, upload_id)


def _upload(connection: Connection, key: ApiKey, upload_id: str) -> Record:
    where = (uploads.c.id == upload_id, uploads.c.owner == key.id)
    row = connection.execute(select(uploads).where(*where)).one_or_none()
    if row is None:
        raise not_found("upload", upload_id)
    return row


def _pending(connection: Connection, key: ApiKey, upload_id: str) -> Record:
    row = _upload(connection, key, upload_id)
    status = "expired" if row.status == "pending" and row.expires_at <= now() else row.status
    if status != "pending":
        raise ApiError(400, f"The upload is {status}; expected a pending one.", code="invalid_upload_status")
    return row


def _parts(connection: Connection, upload_id: str, ids: Sequence[str]) -> list[Record]:
    """The parts in the order that the client names. Raises ApiError for one that is not there, or named twice."""
    rows = connection.execute(select(parts).where(parts.c.upload_id == upload_id)).all()
    by_id = {row.id: row for row in rows}
    unknown = next((name for name in ids if name not in by_id), None)
    if unknown is not None:
        raise not_found("part", unknown, "part_ids")
    if len(set(ids)) < len(ids):
        raise invalid("A part is named twice.", "part_ids")
    return [by_id[name] for name in ids]


def _contents(database: Database, upload_id: str) -> list[str]:
    with database.read() as connection:
        return list(connection.scalars(select(parts.c.sha256).where(parts.c.upload_id == upload_id)))


def _set(connection: Connection, upload_id: str, **values: Any) -> None:
    connection.execute(update(uploads).where(uploads.c.id == upload_id).values(**values))


def _reply(database: Database, key: ApiKey, upload_id: str) -> dict[str, Any]:
    with database.read() as connection:
        return _described(connection, _upload(connection, key, upload_id))


def _described(connection: Connection, row: Record) -> dict[str, Any]:
    names = ("id", "created_at", "filename", "bytes", "purpose", "status", "expires_at")
    described = {name: row._mapping[name] for name in names} | {"object": "upload"}
    if row.file_id is not None:
        file = connection.execute(select(files).where(files.c.id == row.file_id)).one_or_none()
        described |= {} if file is None else {"file": described_file(file)}
    return described
