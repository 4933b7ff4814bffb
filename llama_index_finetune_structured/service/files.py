"""Files: ``/v1/files``."""

from __future__ import annotations

from typing import Annotated, Any, get_args
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from sqlalchemy import Connection, delete, or_

from .app_state import blobs_of, database_of, service_settings
from .blobs import Blob
from .database import files, now
from .errors import invalid
from .forms import chunks_of, described_form, expires_after, field_of, file_in, form_of
from .keys import ApiKey, scoped
from .paging import Order, listed_page
from .stored_files import (
    Purpose,
    add_file,
    checked_text,
    described_file,
    file_of,
    require_room,
    stored_name,
)

__all__ = ["router"]

router = APIRouter(prefix="/v1/files", tags=["files"])
FilesKey = Annotated[ApiKey, Depends(scoped("files"))]


@router.post("", openapi_extra=described_form("file", purpose={"enum": list(get_args(Purpose))}))
async def create_file(request: Request, key: FilesKey) -> dict[str, Any]:
    """Store a file."""
    async with form_of(request) as form:
        file, purpose = file_in(form, "file"), field_of(form, "purpose")
        if purpose not in get_args(Purpose):
            raise invalid(
                f"{purpose!r} is no purpose; expected of {', '.join(get_args(Purpose))}.", "purpose"
            )
        name, seconds = stored_name(file.filename), expires_after(form)
        ids: list[str] = []

        def record(connection: Connection, blob: Blob) -> None:
            require_room(connection, key, blob.size)
            ids.append(
                add_file(
                    connection, blob, owner=key.id, filename=name, purpose=purpose, seconds=seconds
                )
            )  # fmt: skip

        content = checked_text(chunks_of(file), purpose)
        await blobs_of(request).store(content, service_settings(request).max_file_bytes, record)
    return _described(request, key, ids[0])


@router.get("")
def list_files(
    request: Request,
    key: FilesKey,
    purpose: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Order = "desc",
) -> dict[str, Any]:
    """The key's files, the newest first."""
    where = [files.c.owner == key.id, or_(files.c.expires_at.is_(None), files.c.expires_at > now())]
    if purpose is not None:
        where.append(files.c.purpose == purpose)
    rows, has_more = listed_page(database_of(request), files, where, after=after, limit=limit, order=order)
    data = [described_file(row) for row in rows]
    ends = {"first_id": rows[0].id, "last_id": rows[-1].id} if rows else {"first_id": "", "last_id": ""}
    return {"object": "list", "data": data, "has_more": has_more, **ends}


@router.get("/{file_id}")
def retrieve_file(request: Request, key: FilesKey, file_id: str) -> dict[str, Any]:
    """One file, without its content."""
    return _described(request, key, file_id)


@router.get("/{file_id}/content")
def download_file(request: Request, key: FilesKey, file_id: str) -> StreamingResponse:
    """The content of a file."""
    with database_of(request).read() as connection:
        row = file_of(connection, key.id, file_id)
    headers = {
        "content-length": str(row.bytes),
        "content-disposition": f"attachment; filename*=UTF-8''{quote(row.filename, safe='')}",
    }
    chunks = blobs_of(request).chunks(row.sha256)
    return StreamingResponse(chunks, media_type="application/octet-stream", headers=headers)


@router.delete("/{file_id}")
def delete_file(request: Request, key: FilesKey, file_id: str) -> dict[str, Any]:
    """Delete a file. Jobs that were made with it keep its content until they end."""
    with database_of(request).write() as connection:
        row = file_of(connection, key.id, file_id)
        connection.execute(delete(files).where(files.c.number == row.number))
    blobs_of(request).discard([row.sha256])
    return {"id": file_id, "object": "file", "deleted": True}


def _described(request: Request, key: ApiKey, file_id: str) -> dict[str, Any]:
    with database_of(request).read() as connection:
        return described_file(file_of(connection, key.id, file_id))
