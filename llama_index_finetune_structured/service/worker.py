"""A worker: a process that trains jobs one after the other, by turns between keys.

It is started with the settings as one line of JSON on its standard input, and ends after the step at work when that
is closed: by the server at its end, or by the system where the server was killed. A job is in the hands of the process
that holds its lock, which the system releases when that process ends, in whatever way.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any

from sqlalchemy import func, select

from ..locks import locked_file
from .blobs import Blobs
from .database import Database, Record, jobs
from .job_requests import ACTIVE, ENDED
from .job_rows import add_event, change_job, job_row
from .json_log import json_log, log_failure
from .runs import claimed_run
from .settings import ServiceSettings
from .training import JobTraining

__all__ = ["Worker", "run_worker"]

_POLL_S = 0.3


class Worker:
    """Takes jobs until ``stop`` is set. ``device``: its name among the workers of this machine."""

    def __init__(self, settings: ServiceSettings, device: str, stop: threading.Event) -> None:
        self._settings, self._stop = settings, stop
        self._database = Database(settings.database_path)
        self._blobs = Blobs(settings.blobs_folder, self._database)
        self._lock = settings.folder / f"worker-{device}.lock"
        settings.runs_folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def run(self) -> None:
        """Work. Waits first where the worker of an earlier server still ends its step on this device."""
        while not self._stop.is_set():
            try:
                held = locked_file(self._lock)
            except BlockingIOError:
                self._stop.wait(_POLL_S)
                continue
            try:
                while not self._stop.is_set():
                    if not self.work():
                        self._stop.wait(_POLL_S)
            finally:
                held.close()

    def work(self) -> bool:
        """Take the next job, if there is one."""
        for job_id in self._candidates():
            with claimed_run(self._settings.runs_folder / f"{job_id}.lock") as is_mine:
                job = self._begun(job_id) if is_mine else None
                if job is None:
                    continue
                training = JobTraining(job, self._settings, self._database, self._blobs, self._stop)
                if job.attempts > self._settings.attempts:
                    training.fail(
                        f"Its worker died {self._settings.attempts} times without finishing a step: the machine may "
                        "have too little memory."
                    )
                else:
                    training.run()
                with self._database.write() as connection:
                    status = job_row(connection, job_id).status
                    if status in ACTIVE:  # it stopped with the worker, which is no failed attempt
                        change_job(connection, job_id, attempts=job.attempts - 1)
                if status in ENDED:
                    training.leave()
                return True
        return False

    def _candidates(self) -> list[str]:
        """The jobs to work on: those that a worker left unfinished, then of each key the oldest, by turns."""
        turns = select(jobs.c.owner, func.max(jobs.c.turn).label("turn")).group_by(jobs.c.owner).subquery()
        queued = (
            select(jobs.c.id)
            .join(turns, turns.c.owner == jobs.c.owner)
            .where(jobs.c.status == "queued")
            .order_by(func.coalesce(turns.c.turn, 0), jobs.c.number)
        )
        left = select(jobs.c.id).where(jobs.c.status.in_(ACTIVE)).order_by(jobs.c.turn)
        with self._database.read() as connection:
            return [*connection.scalars(left), *connection.scalars(queued)]

    def _begun(self, job_id: str) -> Record | None:
        """The job, with one attempt more; None where it has ended or was paused meanwhile."""
        with self._database.write() as connection:
            job = job_row(connection, job_id)
            if job.status not in (*ACTIVE, "queued"):
                return None
            values: dict[str, Any] = {"attempts": job.attempts + 1}
            if job.status == "queued":
                turn = (connection.scalar(select(func.max(jobs.c.turn))) or 0) + 1
                values |= {"status": "validating_files", "turn": turn, "started_at": int(time.time())}
            elif job.status == "running":
                add_event(connection, job_id, "The job goes on after its worker ended.", level="warn")
            change_job(connection, job_id, **values)
            return job_row(connection, job_id)


def run_worker() -> None:
    """Entry point of the process; the argument is the name of its device."""
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the server, which ends its workers
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def wait_for_end() -> None:
        sys.stdin.read()
        stop.set()

    try:
        settings = ServiceSettings.model_validate_json(sys.stdin.readline())
        threading.Thread(target=wait_for_end, daemon=True).start()
        Worker(settings, sys.argv[1], stop).run()
    except Exception as error:
        log_failure(error, f"worker {sys.argv[1]}")
        os._exit(1)


if __name__ == "__main__":
    with json_log():
        run_worker()
