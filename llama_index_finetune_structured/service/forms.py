"""Multipart forms with one file, read after the request's key and size were checked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from .errors import invalid

__all__ = ["ExpiresAfter", "chunks_of", "described_form", "expires_after", "field_of", "file_in", "form_of"]

_CHUNK_BYTES = 1 << 20
_MOST_FIELDS = 20


class ExpiresAfter(BaseModel):
    """When a file is removed by itself."""

    model_config = ConfigDict(extra="forbid")

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2_592_000)


def described_form(file: str, **fields: Any) -> dict[str, Any]:
    """A form in the description of the API, which FastAPI does not find where the request is read by hand.

    ``file``: the name of its file; ``fields``: the JSON schemas of the others. All are required.
    """
    properties = {file: {"type": "string", "format": "binary"}, **fields}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


@asynccontextmanager
async def form_of(request: Request) -> AsyncIterator[FormData]:
    """The request's form, whose files are removed when the block ends. Raises ApiError where it cannot be read."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise invalid("Expected a multipart/form-data body with a file.", "file")
    try:
        form = await request.form(max_files=1, max_fields=_MOST_FIELDS)
    except (HTTPException, ClientDisconnect, OSError):
        raise
    except Exception:  # header encodings that Python refuses, each with an error of its own
        raise invalid("The form cannot be read: expected multipart/form-data as RFC 7578 has it.") from None
    try:
        yield form
    finally:
        await form.close()


def file_in(form: FormData, name: str) -> UploadFile:
    """The form's file. Raises ApiError where there is none, as where the form was cut short."""
    value = form.get(name)
    if not isinstance(value, UploadFile):
        raise invalid(f"The form has no file {name!r}, or it was not sent to its end.", name)
    return value


def field_of(form: FormData, name: str) -> str:
    """The text of a field. Raises ApiError where there is none."""
    value = form.get(name)
    if not isinstance(value, str):
        raise invalid(f"The form has no field {name!r}.", name)
    return value


def expires_after(form: FormData) -> int | None:
    """Seconds until the file expires, of the fields ``expires_after[anchor]`` and ``[seconds]``; None: it stays."""
    given = {key[14:-1]: value for key, value in form.items() if key.startswith("expires_after[")}
    if not given:
        return None
    try:
        return ExpiresAfter.model_validate(given).seconds
    except ValidationError as error:
        first = error.errors()[0]
        param = f"expires_after.{first['loc'][0]}" if first["loc"] else "expires_after"
        raise invalid(f"Invalid {param}: {first['msg']}", param) from None


async def chunks_of(file: UploadFile) -> AsyncIterator[bytes]:
    """The content of a form's file, in pieces."""
    while chunk := await file.read(_CHUNK_BYTES):
        yield chunk
