"""Changes of jobs in the database, each within a transaction of its caller."""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import Connection, select, update
from sqlalchemy.dialects.sqlite import insert

from .database import Record, events, jobs, new_id, now

__all__ = ["add_event", "add_held_out_loss", "change_job", "job_row"]


def job_row(connection: Connection, job_id: str) -> Record:
    """The row of a job that exists."""
    return connection.execute(select(jobs).where(jobs.c.id == job_id)).one()


def change_job(connection: Connection, job_id: str, **values: Any) -> None:
    """Set columns of a job."""
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(**values))


def add_event(
    connection: Connection,
    job_id: str,
    message: str,
    *,
    level: Literal["info", "warn", "error"] = "info",
    data: dict[str, Any] | None = None,
    step: int | None = None,
) -> bool:
    """Add an event; with ``step`` the metrics of that step. False where the step has its event already."""
    row = {
        "id": new_id("ftevent-"),
        "created_at": now(),
        "job_id": job_id,
        "level": level,
        "message": message,
        "type": "message" if step is None else "metrics",
        "data": data,
        "step": step,
    }
    added = connection.execute(insert(events).values(row).on_conflict_do_nothing(["job_id", "step"]))
    return bool(added.rowcount)


def add_held_out_loss(connection: Connection, job_id: str, step: int, loss: float) -> None:
    """Add the loss of the held-out rows, which is measured when the step is written down, to its metrics.

    Also as an event of its own: who reads events as they come has the step's already.
    """
    where = (events.c.job_id == job_id, events.c.step == step)
    data = connection.scalar(select(events.c.data).where(*where))
    if data is not None and "full_valid_loss" not in data:
        connection.execute(update(events).where(*where).values(data={**data, "full_valid_loss": loss}))
        text = f"Step {step}/{data['total_steps']}: held-out loss={loss:.4f}"
        add_event(connection, job_id, text, data={"step": step, "full_valid_loss": loss})
