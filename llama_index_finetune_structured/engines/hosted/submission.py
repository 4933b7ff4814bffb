"""Submitting a job exactly once.

The intent is on disk before the request leaves. The request carries a key in its metadata, is sent once
and never by the SDK's own retry. Where the outcome is unknown (a lost reply, a killed process), the
provider's list is looked through, for as long as a job may take to show up, before anything is sent again.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import EngineError
from ..timeouts import backoff_s
from .client import Service, reply_errors, with_id, with_rows
from .journal import Journal, Run
from .providers import DEAD, JobRequest, normal_status
from .training_file import TrainingFile

if TYPE_CHECKING:
    from openai.types.fine_tuning import FineTuningJob

__all__ = ["KEY_NAME", "submit", "upload"]

logger = logging.getLogger(__name__)

KEY_NAME = "finetune_structured_run"
_JOBS_LOOKED_THROUGH = 1000
_FILE_READY = {"processed", "succeeded", "ready", "active"}
_FILE_BAD = {"error", "failed", "deleted"}


def upload(service: Service, file: TrainingFile, known_id: str | None) -> str:
    """The id of the file at the provider, uploaded only where it is not there yet, once it is processed."""
    limit_bytes = service.provider.max_file_bytes
    if file.size_bytes > limit_bytes:
        raise EngineError(
            f"{file.path}: {file.size_bytes} bytes; {service.provider.name} takes at most {limit_bytes}"
        )
    uploaded = service.call(f"uploading {file.path}", lambda: _find_or_upload(service, file, known_id))
    _wait_until_ready(service, uploaded, file)
    return str(uploaded.id)


def _find_or_upload(service: Service, file: TrainingFile, known_id: str | None) -> Any:
    for there in with_rows(partial(service.client.files.list, purpose="fine-tune"), "files"):
        same = there.id == known_id or getattr(there, "filename", None) == file.upload_name
        whole = getattr(there, "bytes", None) == file.size_bytes
        if same and whole and str(getattr(there, "status", None)).lower() not in _FILE_BAD:
            logger.info("%s is already uploaded as %s", file.path, there.id)
            return there
    with file.open() as content:
        return with_id(
            service.client.files.create(file=(file.upload_name, content), purpose="fine-tune"), "file"
        )


def _wait_until_ready(service: Service, uploaded: Any, file: TrainingFile) -> None:
    """Return when the file is processed, or file_s have passed: the job request then has the last word."""
    clock, file_id = service.timeouts.clock, uploaded.id
    deadline_s = clock.now_s() + service.timeouts.file_s
    for pause_s in backoff_s(1, service.timeouts.poll_s):
        status = str(getattr(uploaded, "status", None) or "processed").lower()
        if status in _FILE_BAD:
            details = getattr(uploaded, "status_details", None) or "no details given"
            raise EngineError(
                f"{file.path}: {service.provider.name} refused the file ({status}): {details}. "
                "Mend it and call finetune() again"
            )
        if status in _FILE_READY or clock.now_s() >= deadline_s:
            return
        clock.sleep(min(pause_s, deadline_s - clock.now_s()))
        uploaded = service.call(
            "waiting for the file", lambda: with_id(service.client.files.retrieve(file_id), "file")
        )


def submit(service: Service, journal: Journal, request: JobRequest) -> Run:
    """Ask for the job once and journal its id. The caller holds the journal's lock.

    A job found at the provider that failed or was cancelled is asked for anew.
    Raises EngineError with the provider's own words when the request is refused, or when no answer could
    be had in time; the next finetune() then takes up where this one stopped.
    """
    run, job = _intend(service, journal, request)
    while job is not None and normal_status(_field(job, "status")) in DEAD:
        run = run.but(job_id=job.id, status=str(_field(job, "status"))).next_attempt()
        request = replace(request, metadata={KEY_NAME: run.key})
        journal.write(run)
        run, job = _intend(service, journal, request)
    if job is not None:
        logger.info("job %s was asked for before: going on with it", job.id)
    body = service.provider.body(request)
    clock = service.timeouts.clock
    deadline_s = clock.now_s() + service.timeouts.submit_s
    pauses_s = backoff_s(2, 60)
    while job is None:
        try:
            job = with_id(service.client.fine_tuning.jobs.create(**body), "fine-tuning job")
        except reply_errors() as error:
            failure = service.failure(error)
            if failure.kind == "permanent" or clock.now_s() >= deadline_s:
                raise _given_up(service, journal, run, error) from service.safe_cause(error)
            logger.warning("submitting: %s; looking again", failure.message)
            pause_s = next(pauses_s)
            clock.sleep(pause_s if failure.retry_after_s is None else failure.retry_after_s)
            job = _look(service, run, request, patiently=failure.kind == "unknown")
    run = journal.write(
        run.but(phase="submitted", job_id=job.id, status=str(_field(job, "status")), error=None)
    )
    job = _only_one(service, run, job)
    return (
        run
        if job.id == run.job_id
        else journal.write(run.but(job_id=job.id, status=str(_field(job, "status"))))
    )


def _given_up(service: Service, journal: Journal, run: Run, error: Exception) -> EngineError:
    explained = service.explain("submitting the fine-tuning job", error)
    refused = service.failure(error).kind == "permanent"
    journal.write(run.but(error=str(explained), phase="refused" if refused else run.phase))
    return explained


def _intend(service: Service, journal: Journal, request: JobRequest) -> tuple[Run, FineTuningJob | None]:
    """Write down that the job is about to be asked for, and find it if it is already there."""
    run = journal.require()
    if run.phase == "submitting":  # an earlier process asked, and never wrote down an answer
        return run, _look(service, run, request, patiently=True)
    jobs = _jobs(service, run)
    known = tuple(job.id for job in jobs if _field(job, "training_file") == request.training_file)
    run = journal.write(run.but(phase="submitting", known_job_ids=known, error=None))
    return run, _first_of(jobs, run, request)


def _look(service: Service, run: Run, request: JobRequest, *, patiently: bool) -> FineTuningJob | None:
    """This run's job at the provider, if there is one; ``patiently`` keeps looking for settle_s."""
    clock = service.timeouts.clock
    deadline_s = clock.now_s() + (service.timeouts.settle_s if patiently else 0)
    for pause_s in backoff_s(1, 15):
        job = _first_of(_jobs(service, run), run, request)
        if job is not None or clock.now_s() >= deadline_s:
            return job
        clock.sleep(min(pause_s, deadline_s - clock.now_s()))
    raise AssertionError("backoff_s never ends")


def _jobs(service: Service, run: Run) -> list[FineTuningJob]:
    """The jobs that may be this run's: by its key, and, for providers that keep no metadata, the newest."""

    def listed() -> list[FineTuningJob]:
        jobs = service.client.fine_tuning.jobs
        by_key = with_rows(partial(jobs.list, limit=100, metadata={KEY_NAME: run.key}), "jobs")
        newest = itertools.islice(with_rows(partial(jobs.list, limit=100), "jobs"), _JOBS_LOOKED_THROUGH)
        found = itertools.chain(by_key, newest)
        return list({job.id: job for job in found}.values())

    return service.call("looking for the job before asking for it", listed)


def _first_of(jobs: Iterable[FineTuningJob], run: Run, request: JobRequest) -> FineTuningJob | None:
    """This run's oldest job: one that carries its key or, where the provider drops metadata, one that
    trains its file and came after the intent."""
    jobs = list(jobs)
    mine = _with_key(jobs, run) or [
        job
        for job in jobs
        if not _field(job, "metadata")
        and _field(job, "training_file") == request.training_file
        and job.id not in run.known_job_ids
    ]
    return min(mine, key=_age, default=None)


def _with_key(jobs: Iterable[FineTuningJob], run: Run) -> list[FineTuningJob]:
    return [job for job in jobs if (_field(job, "metadata") or {}).get(KEY_NAME) == run.key]


def _age(job: FineTuningJob) -> tuple[int, str]:
    return (_field(job, "created_at") or 0, job.id)


def _field(job: FineTuningJob, name: str) -> Any:
    """A field of a job, or None: real replies leave out what the description requires."""
    return getattr(job, name, None)


def _only_one(service: Service, run: Run, job: FineTuningJob) -> FineTuningJob:
    """Two machines may ask at the same moment: both keep the oldest job, and the others are cancelled."""
    same = sorted(_with_key(_jobs(service, run), run), key=_age)
    if len(same) < 2:
        return job
    for extra in same[1:]:
        if normal_status(_field(extra, "status")) == "running":
            logger.warning("job %s doubles %s: cancelling it", extra.id, same[0].id)
            service.call("cancelling a double", partial(service.client.fine_tuning.jobs.cancel, extra.id))
    return same[0]
