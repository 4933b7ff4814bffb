"""Following a job to its end, in steps that a sync and an async caller can both drive."""

from __future__ import annotations

import logging
from collections.abc import Generator
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import EngineError
from ..timeouts import backoff_s
from .client import Service, reply_errors, with_id, with_rows
from .journal import Journal, Run
from .progress import Progress
from .providers import normal_status

if TYPE_CHECKING:
    from openai.types.fine_tuning import FineTuningJob

__all__ = ["current_job", "follow", "raise_unless_succeeded", "recorded"]

logger = logging.getLogger(__name__)

_MODEL_NAME_GRACE_S = 300


def follow(
    service: Service, journal: Journal, timeout_s: float, progress: Progress, *, needs_name: bool
) -> Generator[float, None, None]:
    """Poll until the job is final, yielding the seconds to pause between polls; the journal keeps the state.

    A poll that gets no answer, and a status that nobody documented, mean "not yet". Raises EngineError
    when the provider refuses to tell (a wrong key, an unknown job), or when ``timeout_s`` have passed.
    ``needs_name``: a job that succeeded is given some minutes to name its model.
    """
    clock = service.timeouts.clock
    deadline_s = clock.now_s() + timeout_s
    run, trouble, named_by_s = journal.require(), "", None
    for pause_s in backoff_s(1, service.timeouts.poll_s):
        try:
            job = with_id(service.client.fine_tuning.jobs.retrieve(str(run.job_id)), "job")
            run, trouble = recorded(journal, run, job), ""
            events = _events(service, str(run.job_id))
            progress.take(str(run.status), events)
            run = _with_reason(journal, run, events)
        except reply_errors() as error:
            failure = service.failure(error)
            if failure.kind == "permanent":
                doing = f"following job {run.job_id}"
                raise service.explain(doing, error) from service.safe_cause(error)
            trouble = f"; the last answer was {failure.message}"
        state = normal_status(run.status)
        if state == "succeeded" and needs_name and not run.fine_tuned_model:
            named_by_s = named_by_s or clock.now_s() + _MODEL_NAME_GRACE_S
            state = "running" if clock.now_s() < named_by_s else state
        if state != "running":
            return
        left_s = deadline_s - clock.now_s()
        if left_s <= 0:
            raise EngineError(
                f"job {run.job_id} is still {run.status!r} after {timeout_s:g} s{trouble}. It goes on at "
                "the provider: call wait() again, or cancel()"
            )
        yield min(pause_s, left_s)


def current_job(service: Service, job_id: str) -> FineTuningJob:
    """The job as the provider describes it now."""
    jobs = service.client.fine_tuning.jobs
    job: FineTuningJob = service.call(
        f"looking up job {job_id}", lambda: with_id(jobs.retrieve(job_id), "job")
    )
    return job


def recorded(journal: Journal, run: Run, job: Any) -> Run:
    """Write down what the provider says of the job, if it is news and the journal is still this job's."""
    error = getattr(job, "error", None)
    message = getattr(error, "message", None)
    changes = {
        "status": str(getattr(job, "status", None)),
        "fine_tuned_model": getattr(job, "fine_tuned_model", None),
        "error": f"{getattr(error, 'code', None) or 'error'}: {message}" if message else run.error,
    }
    if all(getattr(run, name) == value for name, value in changes.items()):
        return run
    return _write(journal, run, **changes)


def _with_reason(journal: Journal, run: Run, events: list[Any]) -> Run:
    """A failed job that gives no reason may have told it in an event."""
    said = [event.message for event in events if getattr(event, "level", None) == "error"]
    if normal_status(run.status) != "failed" or run.error or not said:
        return run
    return _write(journal, run, error=said[0])


def _write(journal: Journal, run: Run, **changes: Any) -> Run:
    """Another process may have submitted the run anew since it was read: then its journal is left alone."""
    there = journal.read()
    if there is not None and there.job_id != run.job_id:
        return run.but(**changes)
    return journal.write(run.but(**changes))


def _events(service: Service, job_id: str) -> list[Any]:
    """The newest events; they only feed the bar, so a provider without them is no failure."""
    try:
        newest = partial(service.client.fine_tuning.jobs.list_events, job_id, limit=100)
        return list(with_rows(newest, "events").data)
    except reply_errors() as error:
        logger.debug("no events of %s: %s", job_id, type(error).__name__)
        return []


def raise_unless_succeeded(run: Run) -> None:
    """Raise EngineError with the provider's own reason for a job that failed or was cancelled."""
    state = normal_status(run.status)
    if state == "succeeded":
        return
    reason = f": {run.error}" if run.error else ""
    remedy = {
        "failed": "Mend what it names and call finetune() again",
        "cancelled": "Call finetune() to submit it anew",
    }.get(state, "Call wait()")
    raise EngineError(f"job {run.job_id} {run.status}{reason}. {remedy}")
