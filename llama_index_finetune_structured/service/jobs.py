"""Fine-tuning jobs: ``/v1/fine_tuning/jobs``."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from sqlalchemy import ColumnElement, Connection, func, insert, or_, select
from sse_starlette import EventSourceResponse

from .app_state import blobs_of, database_of, service_settings
from .database import Database, Record, checkpoints, events, jobs, new_id, now
from .errors import ApiError, invalid, not_found
from .job_requests import (
    ACTIVE,
    ENDED,
    CreateJob,
    DpoHyperparameters,
    Hyperparameters,
    described_event,
    described_job,
)
from .job_rows import add_event, change_job, job_row
from .keys import ApiKey, scoped
from .models import models_of, require_room_for_model
from .paging import listed_page
from .stored_files import file_of

__all__ = ["find_job", "model_columns", "router"]

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])
JobsKey = Annotated[ApiKey, Depends(scoped("fine_tuning"))]
Limit = Annotated[int, Query(ge=1, le=1000)]
_POLL_S = 0.3


@router.post("")
def create_job(request: Request, key: JobsKey, body: CreateJob) -> dict[str, Any]:
    """Queue a job."""
    method, hyperparameters = _method(body)
    row: dict[str, Any] = {
        "id": new_id("ftjob-"),
        "owner": key.id,
        "created_at": now(),
        "status": "queued",
        **model_columns(request, key, body.model),
        "method": method,
        "hyperparameters": hyperparameters.model_dump(),
        "suffix": body.suffix,
        "seed": secrets.randbelow(2**31) if body.seed is None else body.seed,
        "metadata": body.metadata,
    }
    with database_of(request).write() as connection:
        for kind in ("training", "validation"):
            if (file_id := getattr(body, f"{kind}_file")) is not None:
                row |= _file_columns(connection, key, kind, file_id)
        _require_turn(connection, key)
        require_room_for_model(connection, key.id, service_settings(request).max_models)
        connection.execute(insert(jobs).values(row))
        add_event(connection, row["id"], f"Created fine-tuning job: {row['id']}")
        return described_job(job_row(connection, row["id"]), service_settings(request).organization)


def _method(body: CreateJob) -> tuple[str, Hyperparameters]:
    """The method and its hyperparameters, or those of the older field.

    Raises ApiError for what the engine cannot do.
    """
    method = body.method
    if body.integrations:
        raise invalid("There are no integrations here; leave the field out.", "integrations")
    if method is None:
        return "supervised", body.hyperparameters or Hyperparameters()
    if method.type == "reinforcement":
        raise invalid(
            "method 'reinforcement' cannot be trained here; expected 'supervised' or 'dpo'.", "method.type",
            code="unsupported_method",
        )  # fmt: skip
    if any(
        getattr(method, name) is not None for name in {"supervised", "dpo", "reinforcement"} - {method.type}
    ):
        raise invalid(f"The method is {method.type!r}: leave out what is of others.", "method")
    given = method.supervised if method.type == "supervised" else method.dpo
    if given is not None and body.hyperparameters is not None:
        raise invalid("Set 'hyperparameters' or those of 'method', not both.", "hyperparameters")
    if given is not None:
        return method.type, given.hyperparameters
    asked = {} if body.hyperparameters is None else body.hyperparameters.model_dump()
    return method.type, (Hyperparameters if method.type == "supervised" else DpoHyperparameters)(**asked)


def _file_columns(connection: Connection, key: ApiKey, kind: str, file_id: str) -> dict[str, Any]:
    field = f"{kind}_file"
    row = file_of(connection, key.id, file_id, field)
    if row.purpose != "fine-tune":
        raise invalid(f"The file is for {row.purpose!r}; expected the purpose 'fine-tune'.", field)
    return {field: file_id, f"{kind}_sha256": row.sha256, f"{kind}_name": row.filename}


def _require_turn(connection: Connection, key: ApiKey) -> None:
    where = (jobs.c.owner == key.id, jobs.c.status.not_in(ENDED))
    waiting = connection.scalar(select(func.count()).select_from(jobs).where(*where))
    if (waiting or 0) >= key.max_waiting_jobs:
        raise ApiError(
            429,
            f"This key has {waiting} jobs that have not ended, as many as it may have: wait, or cancel some.",
            code="rate_limit_exceeded",
        )


@router.get("")
def list_jobs(request: Request, key: JobsKey, after: str | None = None, limit: Limit = 20) -> dict[str, Any]:
    """The key's jobs, the newest first; ``metadata[name]=value`` selects by metadata."""
    where = [jobs.c.owner == key.id, *_metadata_filter(request.query_params.multi_items())]
    rows, has_more = listed_page(database_of(request), jobs, where, after=after, limit=limit)
    organization = service_settings(request).organization
    return {
        "object": "list",
        "data": [described_job(row, organization) for row in rows],
        "has_more": has_more,
    }


def _metadata_filter(query: Iterable[tuple[str, str]]) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    for name, value in query:
        if name == "metadata" and value == "null":
            found.append(or_(jobs.c.metadata.is_(None), jobs.c.metadata == {}))
        elif name.startswith("metadata[") and name.endswith("]"):
            # json_each, since a path of SQLite's JSON functions cannot hold every name.
            each = func.json_each(jobs.c.metadata).table_valued("key", "value")
            matches = select(each.c.key).where(each.c.key == name[9:-1], each.c.value == value)
            found.append(matches.exists())
    return found


@router.get("/{job_id}")
def retrieve_job(request: Request, key: JobsKey, job_id: str) -> dict[str, Any]:
    """One job."""
    with database_of(request).read() as connection:
        return described_job(find_job(connection, key, job_id), service_settings(request).organization)


@router.post("/{job_id}/cancel")
def cancel_job(request: Request, key: JobsKey, job_id: str) -> dict[str, Any]:
    """End a job; training stops within a step."""
    described = _change(
        request, key, job_id, "cancelled", "The job was cancelled.", (*ACTIVE, "queued", "paused")
    )
    with database_of(request).read() as connection:
        row = find_job(connection, key, job_id)
    blobs_of(request).discard(sha256 for sha256 in (row.training_sha256, row.validation_sha256) if sha256)
    return described


@router.post("/{job_id}/pause")
def pause_job(request: Request, key: JobsKey, job_id: str) -> dict[str, Any]:
    """Stop a job until it is resumed; training stops within a step."""
    return _change(request, key, job_id, "paused", "The job was paused.", (*ACTIVE, "queued"))


@router.post("/{job_id}/resume")
def resume_job(request: Request, key: JobsKey, job_id: str) -> dict[str, Any]:
    """Queue a paused job again; it goes on after its last step."""
    return _change(request, key, job_id, "queued", "The job was resumed.", ("paused",))


def _change(
    request: Request, key: ApiKey, job_id: str, status: str, message: str, allowed: tuple[str, ...]
) -> dict[str, Any]:
    with database_of(request).write() as connection:
        row = find_job(connection, key, job_id)
        if row.status not in allowed:
            raise invalid(
                f"The job is {row.status}; expected one of: {', '.join(allowed)}.", code="invalid_job_status"
            )
        finished = now() if status in ENDED else None
        change_job(connection, job_id, status=status, finished_at=finished, attempts=0)
        add_event(connection, job_id, message)
        return described_job(job_row(connection, job_id), service_settings(request).organization)


def find_job(connection: Connection, key: ApiKey, job_id: str) -> Record:
    """The row of a job. Raises ApiError (404) where the key has none of that id."""
    where = (jobs.c.id == job_id, jobs.c.owner == key.id)
    row = connection.execute(select(jobs).where(*where)).one_or_none()
    if row is None:
        raise not_found("fine_tuning_job", job_id)
    return row


def model_columns(request: Request, key: ApiKey, name: str) -> dict[str, Any]:
    """The base model and, where the job goes on from a tuned one, that. Raises ApiError (404)."""
    bases = service_settings(request).bases
    if name in bases:
        return {"model": name}
    store = models_of(request)
    store.refuse_embedding_model(name)
    try:
        return {"model": store.base_name(name, key.id), "start_model": name}
    except ApiError as error:
        names = ", ".join(bases)
        raise ApiError(
            404, f"{name!r} cannot be fine-tuned here; expected of: {names}, or a model that you tuned.",
            param="model", code="model_not_found",
        ) from error  # fmt: skip


@router.get("/{job_id}/events", response_model=None)
def list_events(
    request: Request,
    key: JobsKey,
    job_id: str,
    after: str | None = None,
    limit: Limit = 20,
    stream: bool = False,
) -> dict[str, Any] | Response:
    """A job's events, the newest first; with ``stream``, all as server-sent events until the job has ended."""
    database = database_of(request)
    with database.read() as connection:
        find_job(connection, key, job_id)
    if stream:
        return EventSourceResponse(_stream(database, job_id))
    rows, has_more = listed_page(database, events, [events.c.job_id == job_id], after=after, limit=limit)
    return {"object": "list", "data": [described_event(row) for row in rows], "has_more": has_more}


async def _stream(database: Database, job_id: str) -> AsyncIterator[dict[str, str]]:
    last, is_over = 0, False
    while not is_over:
        rows, is_over = await run_in_threadpool(_events_after, database, job_id, last)
        for row in rows:
            yield {"data": json.dumps(described_event(row))}
            last = row.number
        if not is_over:
            await asyncio.sleep(_POLL_S)
    yield {"data": "[DONE]"}


def _events_after(database: Database, job_id: str, number: int) -> tuple[list[Record], bool]:
    """The events after a number, and whether there will be no more."""
    with database.read() as connection:
        is_over = job_row(connection, job_id).status in ENDED
        where = (events.c.job_id == job_id, events.c.number > number)
        rows = connection.execute(select(events).where(*where).order_by(events.c.number)).all()
    return list(rows), is_over


@router.get("/{job_id}/checkpoints")
def list_checkpoints(
    request: Request, key: JobsKey, job_id: str, after: str | None = None, limit: Limit = 10
) -> dict[str, Any]:
    """The weights of a job that are served: those that it kept in the end."""
    database = database_of(request)
    with database.read() as connection:
        find_job(connection, key, job_id)
    where = [checkpoints.c.job_id == job_id]
    rows, has_more = listed_page(database, checkpoints, where, after=after, limit=limit)
    data = [
        {
            "object": "fine_tuning.job.checkpoint",
            "id": row.id,
            "created_at": row.created_at,
            "fine_tuning_job_id": job_id,
            "fine_tuned_model_checkpoint": row.model,
            "step_number": row.step,
            "metrics": row.metrics,
        }
        for row in rows
    ]
    ends = {"first_id": rows[0].id, "last_id": rows[-1].id} if rows else {"first_id": None, "last_id": None}
    return {"object": "list", "data": data, "has_more": has_more, **ends}
