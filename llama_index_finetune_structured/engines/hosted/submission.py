"""Upload of the files and submission of the job, exactly once.

The intent is on disk before the job request is sent, and the request carries a key in its metadata. It is sent again
only after a reply that refuses it. Where its outcome is unknown (a lost reply, a killed process), the provider's jobs
are searched for the key. If no job has it, the job may still appear, or the provider drops metadata: the user decides
(``ownership.py``).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import EngineError
from ...printable import package_logger
from ..timeouts import backoff_s
from .client import Service, read_rows, require_id, sdk_errors
from .follow import cancel_job
from .journal import Run, RunJournal, claimed
from .ownership import (
    KEY_NAME,
    agrees,
    attempt_of,
    described,
    has_key,
    is_in_reply,
    job_field,
    live_jobs,
    own_jobs,
)
from .providers import JobRequest, normal_status
from .training_file import TrainingFile

if TYPE_CHECKING:
    from openai.types.fine_tuning import FineTuningJob

__all__ = ["keep_one", "submit", "upload"]

logger = package_logger(__name__)

_MOST_JOBS = 1000  # chosen: jobs of one listing, ten pages of 100
_FILE_READY = {"processed", "succeeded", "ready", "active"}
_FILE_BAD = {"error", "failed", "deleted"}


def upload(service: Service, file: TrainingFile, known_id: str | None) -> str:
    """The id of the processed file at the provider; it is uploaded only if the provider does not have it.

    ``known_id``: id of an earlier upload. Raises EngineError for a file that is too large or refused.
    """
    limit_bytes = service.provider.max_file_bytes
    if file.size_bytes > limit_bytes:
        raise EngineError(
            f"{file.path}: {file.size_bytes} bytes; {service.provider.name} takes at most {limit_bytes}"
        )
    uploaded = service.call(f"uploading {file.path}", lambda: _find_or_upload(service, file, known_id))
    _wait_until_ready(service, uploaded, file)
    return str(uploaded.id)


def _find_or_upload(service: Service, file: TrainingFile, known_id: str | None) -> Any:
    """The file at the provider, found by id or by name and size: the name contains the content's hash."""
    for stored in read_rows(partial(service.client.files.list, purpose="fine-tune"), "files"):
        same = stored.id == known_id or getattr(stored, "filename", None) == file.upload_name
        complete = getattr(stored, "bytes", None) == file.size_bytes
        if same and complete and str(getattr(stored, "status", None)).lower() not in _FILE_BAD:
            logger.info("%s is already uploaded as %s", file.path, stored.id)
            return stored
    with file.open() as content:
        return require_id(
            service.client.files.create(file=(file.upload_name, content), purpose="fine-tune"), "file"
        )


def _wait_until_ready(service: Service, uploaded: Any, file: TrainingFile) -> None:
    """Return when the file is processed, or after ``file_s``: the reply to the job request decides then."""
    clock, file_id = service.timeouts.clock, uploaded.id
    deadline_s = clock.now_s() + service.timeouts.file_s
    for pause_s in backoff_s(1, service.timeouts.poll_s):
        status = str(getattr(uploaded, "status", None) or "processed").lower()
        if status in _FILE_BAD:
            details = getattr(uploaded, "status_details", None) or "no details given"
            raise EngineError(
                f"{file.path}: {service.provider.name} refused the file ({status}): {details}. "
                "Fix it and call finetune() again"
            )
        if status in _FILE_READY or clock.now_s() >= deadline_s:
            return
        clock.sleep(min(pause_s, deadline_s - clock.now_s()))
        uploaded = service.call(
            "waiting for the file", lambda: require_id(service.client.files.retrieve(file_id), "file")
        )


def submit(service: Service, journal: RunJournal, request: JobRequest, *, resubmit: bool = False) -> Run:
    """Submit the job once and write its id to the journal, whose lock the caller holds.

    A live job of this run that is found at the provider is adopted; one that failed or was cancelled is resubmitted.
    ``resubmit``: the user's decision that an earlier request of unknown outcome made no job.

    Raises EngineError with the provider's own message when the request is refused, or not accepted within
    ``submit_s``; and one with the jobs in question where the outcome is unknown.
    """
    run = journal.require()
    jobs = _search(service, run, patiently=run.phase == "submitting")
    job = next(iter(live_jobs(own_jobs(jobs, run))), None)
    if job is None:
        is_settled = run.phase != "submitting" or bool(_candidates(jobs, run))
        if not is_settled and not resubmit:
            raise _question(journal, run, request, jobs, run.error or "it was sent by a process that ended")
        run = journal.write(_intent(run, request, jobs))
        job = _create(service, journal, run, replace(request, metadata={KEY_NAME: run.key}))
    else:
        logger.info("job %s was submitted before: following it", job.id)
    # The id goes to disk before the check for duplicates, which makes requests of its own and may be killed.
    return keep_one(service, journal, _record_submitted(journal, run, job))


def _intent(run: Run, request: JobRequest, jobs: list[FineTuningJob]) -> Run:
    """The run before its next request, of which all earlier jobs are dead, under a key that no request had yet."""
    dead = {job.id: attempt_of(job, run) or 0 for job in own_jobs(jobs, run)}
    sent = [run.attempt] if run.phase == "submitting" else []
    attempt = max([run.attempt, *(number + 1 for number in (*sent, *dead.values()))])
    return run.but(
        phase="submitting",
        attempt=attempt,
        key=f"{run.key.rpartition('-')[0]}-{attempt}",
        known_job_ids=tuple(
            job.id for job in jobs if job_field(job, "training_file") == request.training_file
        ),
        earlier_jobs=tuple(dict.fromkeys((*run.earlier_jobs, *dead))),
        error=None,
    )


def _create(service: Service, journal: RunJournal, run: Run, request: JobRequest) -> FineTuningJob:
    """Send the job request until it is accepted, again only after a refusal that may end."""
    body = service.provider.body(request)
    clock = service.timeouts.clock
    deadline_s = clock.now_s() + service.timeouts.submit_s
    for pause_s in backoff_s(2, 60):
        try:
            created = require_id(service.client.fine_tuning.jobs.create(**body), "fine-tuning job")
            return _checked(created, journal, run, request)
        except sdk_errors() as error:
            failure = service.failure(error)
            is_over = failure.kind == "transient" and clock.now_s() >= deadline_s
            if failure.kind == "permanent" or is_over:
                explained = service.explain("submitting the fine-tuning job", error)
                journal.write(run.but(error=str(explained), phase="refused"))
                raise explained from service.safe_cause(error)
        # Outside the handler: the SDK's error may show the key, and is no context of an error from here on.
        if failure.kind == "unknown":
            logger.warning("submitting: %s; searching for the job", failure.message)
            return _found(service, journal, run, request, failure.message)
        logger.warning("submitting: %s; trying again", failure.message)
        clock.sleep(pause_s if failure.retry_after_s is None else failure.retry_after_s)
    raise AssertionError("backoff_s never ends")


def _checked(job: FineTuningJob, journal: RunJournal, run: Run, request: JobRequest) -> FineTuningJob:
    """The job of a reply. Raises ValueError, as for an unreadable reply, where it is the job of another request."""
    if not is_in_reply(job, run, request, claimed(journal, run)):
        raise ValueError(f"the reply describes the job of another request, {job.id}")
    return job


def _found(
    service: Service, journal: RunJournal, run: Run, request: JobRequest, reason: str
) -> FineTuningJob:
    """The job of a request of unknown outcome. Raises EngineError, the question to the user, where none has the key."""
    run = journal.write(run.but(error=reason))
    jobs = _search(service, run, patiently=True)
    own = _candidates(jobs, run)
    if not own:
        raise _question(journal, run, request, jobs, reason)
    return own[0]


def _question(
    journal: RunJournal, run: Run, request: JobRequest, jobs: list[FineTuningJob], reason: str
) -> EngineError:
    """The error that asks the user which job is this run's."""
    excluded = {*run.known_job_ids, *claimed(journal, run)}
    alike = [job for job in jobs if job.id not in excluded and agrees(job, request)]
    listed = "".join(f"\n  {described(job)}" for job in alike)
    found = "No job that may be its job is listed."
    if alike:
        job_id = alike[0].id if len(alike) == 1 else "..."
        follow = f"To follow it: start_job_id={job_id!r}, output_dir={str(journal.folder)!r}."
        found = f"These jobs at the provider may be its job:{listed}\n{follow}"
    return EngineError(
        f"{journal.folder}: whether the job was made is unknown. The request was sent and its outcome is not known: "
        f"{reason}. No job carries this run's key. {found}\n"
        "If it may appear later: call finetune() again, which searches and sends nothing.\n"
        "If none is this run's job: create the engine with resubmit=True, and finetune() sends the request again."
    )


def _record_submitted(journal: RunJournal, run: Run, job: FineTuningJob) -> Run:
    changes = {"job_id": job.id, "status": str(job_field(job, "status")), "error": None}
    return journal.write(run.but(phase="submitted", **changes))


def _candidates(jobs: list[FineTuningJob], run: Run) -> list[FineTuningJob]:
    """The live jobs of all attempts, then those with the present key in whatever state."""
    return [*live_jobs(own_jobs(jobs, run)), *(job for job in jobs if has_key(job, run))]


def _search(service: Service, run: Run, *, patiently: bool) -> list[FineTuningJob]:
    """The jobs that may be this run's; ``patiently``: repeat for ``settle_s``, until one has the run's key."""
    clock = service.timeouts.clock
    deadline_s = clock.now_s() + (service.timeouts.settle_s if patiently else 0)
    for pause_s in backoff_s(1, 15):
        jobs = _jobs(service, run)
        if _candidates(jobs, run) or clock.now_s() >= deadline_s:
            return jobs
        clock.sleep(min(pause_s, deadline_s - clock.now_s()))
    raise AssertionError("backoff_s never ends")


def _jobs(service: Service, run: Run) -> list[FineTuningJob]:
    """The jobs with the run's key, and the newest, for other attempts and for providers without metadata."""

    def listed() -> list[FineTuningJob]:
        jobs = service.client.fine_tuning.jobs
        with_key = partial(jobs.list, limit=100, metadata={KEY_NAME: run.key})
        by_key = read_rows(with_key, "jobs", most=_MOST_JOBS)
        newest = read_rows(partial(jobs.list, limit=100), "jobs", most=_MOST_JOBS)
        return list({job.id: job for job in (*by_key, *newest)}.values())

    return service.call("searching for the run's jobs", listed)


def keep_one(service: Service, journal: RunJournal, run: Run) -> Run:
    """Cancel all but one of the live jobs with the run's key, and follow that one.

    There are two where two machines submitted at once, where the journal's lock does not reach: each keeps the same
    one. A listing without the run's own job is incomplete, and nothing is cancelled by it.
    """
    live = live_jobs(own_jobs(_jobs(service, run), run)) if run.key else []
    if len(live) < 2 or run.job_id not in [job.id for job in live]:
        return run
    kept, *duplicates = live
    if kept.id != run.job_id:
        run = _record_submitted(journal, run, kept)
    for job in duplicates:
        if normal_status(job_field(job, "status")) == "running":
            logger.warning("job %s duplicates %s: cancelling it", job.id, kept.id)
            cancel_job(service, job.id)
    return run
