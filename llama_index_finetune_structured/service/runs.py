"""The folders of jobs' runs: who works in one, and which are not needed any more."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import select

from ..locks import locked_file
from .database import Database, jobs, models
from .job_requests import ENDED
from .settings import ServiceSettings

__all__ = ["claimed_run", "remove_runs"]


@contextmanager
def claimed_run(lock: Path) -> Iterator[bool]:
    """Hold a job's lock; False where another process holds it."""
    try:
        held = locked_file(lock)
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        held.close()


def remove_runs(settings: ServiceSettings, database: Database) -> None:
    """Remove the runs of jobs that ended without a model, or whose model was deleted; and locks of ended jobs."""
    with database.read() as connection:
        ended = set(connection.scalars(select(jobs.c.id).where(jobs.c.status.in_(ENDED))))
        served = set(connection.scalars(select(models.c.job_id)))
    for lock in settings.runs_folder.glob("*.lock"):
        if lock.stem in ended:
            with claimed_run(lock) as is_mine:
                if is_mine:  # no worker is at work in it any more
                    needless = "checkpoints" if lock.stem in served else "."
                    shutil.rmtree(settings.runs_folder / lock.stem / needless, ignore_errors=True)
                    lock.unlink()
    for run in settings.runs_folder.glob("ftjob-*"):
        is_locked = run.with_name(f"{run.name}.lock").exists()
        if run.name in ended - served and not is_locked:
            shutil.rmtree(run, ignore_errors=True)
