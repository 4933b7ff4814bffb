"""Poll a job to its end, as a generator of pauses for sync and async callers."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import EngineError
from ...printable import package_logger
from ..timeouts import backoff_s
from .client import Service, read_rows, require_id, sdk_errors
from .journal import Run, RunJournal
from .progress import Progress
from .providers import normal_status

if TYPE_CHECKING:
    from openai.types.fine_tuning import FineTuningJob

__all__ = ["cancel_job", "current_job", "follow", "raise_unless_succeeded", "recorded"]

logger = package_logger(__name__)

_SHOWN_EVENTS = 100  # the longest page that OpenAI gives
_MODEL_NAME_GRACE_S = 300  # chosen: some providers name the model some time after the job has succeeded


def follow(
    service: Service, journal: RunJournal, timeout_s: float, progress: Progress, *, needs_name: bool
) -> Generator[float, None, None]:
    """Poll until the job is final, yielding the seconds to pause between polls; the journal is kept current.

    An unanswered poll and an undocumented status count as "still running". ``needs_name``: go on for some
    minutes where a job has succeeded and does not name its model yet.

    Raises EngineError when the provider refuses (a wrong key, an unknown job), or after ``timeout_s``.
    """
    clock = service.timeouts.clock
    deadline_s = clock.now_s() + timeout_s
    run, last_error, name_deadline_s = journal.require(), "", None
    for pause_s in backoff_s(1, service.timeouts.poll_s):
        try:
            job = require_id(service.client.fine_tuning.jobs.retrieve(str(run.job_id)), "job")
            run, last_error = recorded(service, journal, run, job), ""
            events = _events(service, str(run.job_id))
            progress.take(str(run.status), events)
            run = _with_reason(service, journal, run, events)
        except sdk_errors() as error:
            failure = service.failure(error)
            if failure.kind == "permanent":
                doing = f"following job {run.job_id}"
                raise service.explain(doing, error) from service.safe_cause(error)
            last_error = f"; the last reply was {failure.message}"
        state = normal_status(run.status)
        if state == "succeeded" and needs_name and not run.fine_tuned_model:
            name_deadline_s = name_deadline_s or clock.now_s() + _MODEL_NAME_GRACE_S
            state = "running" if clock.now_s() < name_deadline_s else state
        if state != "running":
            return
        left_s = deadline_s - clock.now_s()
        if left_s <= 0:
            raise EngineError(
                f"job {run.job_id} is still {run.status!r} after {timeout_s:g} s{last_error}. It is still "
                "running at the provider: call wait() again, or cancel()"
            )
        yield min(pause_s, left_s)


def current_job(service: Service, job_id: str) -> FineTuningJob:
    """The job as the provider describes it now."""
    jobs = service.client.fine_tuning.jobs
    job: FineTuningJob = service.call(
        f"looking up job {job_id}", lambda: require_id(jobs.retrieve(job_id), "job")
    )
    return job


def cancel_job(service: Service, job_id: str) -> FineTuningJob:
    """Ask the provider to stop the job, and return it; a job that has ended is returned unchanged.

    Raises EngineError where the provider does not stop a running job.
    """
    jobs = service.client.fine_tuning.jobs
    try:
        job: FineTuningJob = service.call(
            f"cancelling job {job_id}", lambda: require_id(jobs.cancel(job_id), "job")
        )
    except EngineError:
        job = current_job(service, job_id)
        if normal_status(job.status) == "running":
            raise
    return job


def recorded(service: Service, journal: RunJournal, run: Run, job: Any) -> Run:
    """The run with the job's state, written to the journal if it has changed."""
    error = getattr(job, "error", None)
    message = getattr(error, "message", None)
    changes = {
        "status": str(getattr(job, "status", None)),
        "fine_tuned_model": getattr(job, "fine_tuned_model", None),
        "error": service.masked(f"{getattr(error, 'code', None) or 'error'}: {message}")
        if message
        else run.error,
    }
    if all(getattr(run, name) == value for name, value in changes.items()):
        return run
    return _write(journal, run, **changes)


def _with_reason(service: Service, journal: RunJournal, run: Run, events: list[Any]) -> Run:
    """The run of a failed job with the reason from its events, where the job itself gives none."""
    reasons = [
        reason
        for event in events
        if getattr(event, "level", None) == "error" and (reason := getattr(event, "message", None))
    ]
    if normal_status(run.status) != "failed" or run.error or not reasons:
        return run
    return _write(journal, run, error=service.masked(str(reasons[0])))


def _write(journal: RunJournal, run: Run, **changes: Any) -> Run:
    """Write the changed run, unless another process has resubmitted it since: the journal is then current."""
    stored = journal.read()
    if stored is not None and stored.job_id != run.job_id:
        return run.but(**changes)
    return journal.write(run.but(**changes))


def _events(service: Service, job_id: str) -> list[Any]:
    """The newest events, or none where the provider has none: they are needed only for the progress bar."""
    try:
        newest = partial(service.client.fine_tuning.jobs.list_events, job_id, limit=_SHOWN_EVENTS)
        return read_rows(newest, "events", most=_SHOWN_EVENTS, with_ids=False)
    except sdk_errors() as error:
        logger.debug("no events of %s: %s", job_id, type(error).__name__)
        return []


def raise_unless_succeeded(run: Run) -> None:
    """Raise EngineError with the provider's own reason for a job that failed or was cancelled."""
    state = normal_status(run.status)
    if state == "succeeded":
        return
    reason = f": {run.error}" if run.error else ""
    remedy = {
        "failed": "Fix the cause and call finetune() again",
        "cancelled": "Call finetune() to resubmit it",
    }.get(state, "Call wait()")
    raise EngineError(f"job {run.job_id} {run.status}{reason}. {remedy}")
