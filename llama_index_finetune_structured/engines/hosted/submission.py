"""Upload of the files and submission of the job, exactly once.

The intent is on disk before the job request is sent. The request carries a key in its metadata and is sent
once, never by the SDK's own retry. Where its outcome is unknown (a lost reply, a killed process), the
provider's jobs are searched for the key, for as long as a job may take to appear there, before the request
is sent again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import EngineError
from ...printable import package_logger
from ..timeouts import backoff_s
from .client import Service, read_rows, require_id, sdk_errors
from .journal import Run, RunJournal
from .providers import DEAD, JobRequest, normal_status
from .training_file import TrainingFile

if TYPE_CHECKING:
    from openai.types.fine_tuning import FineTuningJob

__all__ = ["KEY_NAME", "submit", "upload"]

logger = package_logger(__name__)

KEY_NAME = "finetune_structured_run"
"""Name of the run's key in the job's metadata."""

_NEWEST_JOBS = 1000  # chosen: jobs searched at a provider that drops metadata, ten pages of 100
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


def submit(service: Service, journal: RunJournal, request: JobRequest) -> Run:
    """Submit the job once and write its id to the journal, whose lock the caller holds.

    A job of this run that is found at the provider is adopted; one that failed or was cancelled is
    resubmitted. Raises EngineError with the provider's own message when the request is refused, or when it is
    not answered within ``submit_s``; the next finetune() then resumes here.
    """
    run, job = _record_intent(service, journal, request)
    # A dead job under this key would be found again by every later search and be adopted as the result, so
    # the next attempt gets a new key. It is on disk before the search for jobs under it.
    while job is not None and normal_status(_field(job, "status")) in DEAD:
        run = run.but(job_id=job.id, status=str(_field(job, "status"))).next_attempt()
        request = replace(request, metadata={KEY_NAME: run.key})
        journal.write(run)
        run, job = _record_intent(service, journal, request)
    if job is None:
        job = _create(service, journal, run, request)
    else:
        logger.info("job %s was submitted before: following it", job.id)
    # The id goes to disk before the check for duplicates, which makes requests of its own and may be killed.
    run = _record_submitted(journal, run, job)
    kept = _cancel_duplicates(service, run, job)
    return run if kept.id == run.job_id else _record_submitted(journal, run, kept)


def _create(service: Service, journal: RunJournal, run: Run, request: JobRequest) -> FineTuningJob:
    """Send the job request until it is answered, with a search for its job before each repetition."""
    body = service.provider.body(request)
    clock = service.timeouts.clock
    deadline_s = clock.now_s() + service.timeouts.submit_s
    for pause_s in backoff_s(2, 60):
        try:
            created: FineTuningJob = require_id(
                service.client.fine_tuning.jobs.create(**body), "fine-tuning job"
            )
            return created
        except sdk_errors() as error:
            failure = service.failure(error)
            if failure.kind == "permanent" or clock.now_s() >= deadline_s:
                raise _not_submitted(service, journal, run, error) from service.safe_cause(error)
            logger.warning("submitting: %s; searching for the job before a retry", failure.message)
            clock.sleep(pause_s if failure.retry_after_s is None else failure.retry_after_s)
            # After an unknown outcome the job may exist and not be listed yet: the search then waits for it.
            # A transient failure was a refusal, so that one look is enough.
            job = _search(service, run, request, patiently=failure.kind == "unknown")
        if job is not None:
            return job
    raise AssertionError("backoff_s never ends")


def _not_submitted(service: Service, journal: RunJournal, run: Run, error: Exception) -> EngineError:
    """Write the error to the journal and return it as an EngineError.

    Only a refusal ends the phase ``submitting``: after any other error the job may still appear, so that the
    next finetune() must search for it.
    """
    explained = service.explain("submitting the fine-tuning job", error)
    refused = service.failure(error).kind == "permanent"
    journal.write(run.but(error=str(explained), phase="refused" if refused else run.phase))
    return explained


def _record_submitted(journal: RunJournal, run: Run, job: FineTuningJob) -> Run:
    changes = {"job_id": job.id, "status": str(_field(job, "status")), "error": None}
    return journal.write(run.but(phase="submitted", **changes))


def _record_intent(
    service: Service, journal: RunJournal, request: JobRequest
) -> tuple[Run, FineTuningJob | None]:
    """Write to disk that the job will be requested; the run, and its job if it exists already.

    The ids of jobs that train the same file are recorded as well: at a provider that drops metadata, a job
    that is not among them and trains this file is this run's.
    """
    run = journal.require()
    if run.phase == "submitting":  # an earlier process sent the request and recorded no reply
        return run, _search(service, run, request, patiently=True)
    jobs = _jobs(service, run)
    known = tuple(job.id for job in jobs if _field(job, "training_file") == request.training_file)
    run = journal.write(run.but(phase="submitting", known_job_ids=known, error=None))
    return run, _job_of(jobs, run, request)


def _search(service: Service, run: Run, request: JobRequest, *, patiently: bool) -> FineTuningJob | None:
    """This run's job at the provider, if it exists; ``patiently`` repeats the search for ``settle_s``."""
    clock = service.timeouts.clock
    deadline_s = clock.now_s() + (service.timeouts.settle_s if patiently else 0)
    for pause_s in backoff_s(1, 15):
        job = _job_of(_jobs(service, run), run, request)
        if job is not None or clock.now_s() >= deadline_s:
            return job
        clock.sleep(min(pause_s, deadline_s - clock.now_s()))
    raise AssertionError("backoff_s never ends")


def _jobs(service: Service, run: Run) -> list[FineTuningJob]:
    """The jobs that may be this run's: those with its key and, for providers without metadata, the newest."""

    def listed() -> list[FineTuningJob]:
        jobs = service.client.fine_tuning.jobs
        by_key = read_rows(partial(jobs.list, limit=100, metadata={KEY_NAME: run.key}), "jobs")
        newest = read_rows(partial(jobs.list, limit=100), "jobs", most=_NEWEST_JOBS)
        return list({job.id: job for job in (*by_key, *newest)}.values())

    return service.call("searching for the job before submitting it", listed)


def _job_of(jobs: Iterable[FineTuningJob], run: Run, request: JobRequest) -> FineTuningJob | None:
    """This run's oldest job: by its key or, where the provider drops metadata, by its training file.

    By file only jobs count that did not exist when the intent was recorded.
    """
    jobs = list(jobs)
    own = _with_key(jobs, run) or [
        job
        for job in jobs
        if not _field(job, "metadata")
        and _field(job, "training_file") == request.training_file
        and job.id not in run.known_job_ids
    ]
    return min(own, key=_age, default=None)


def _with_key(jobs: Iterable[FineTuningJob], run: Run) -> list[FineTuningJob]:
    return [job for job in jobs if (_field(job, "metadata") or {}).get(KEY_NAME) == run.key]


def _age(job: FineTuningJob) -> tuple[int, str]:
    """Sort key, oldest first; the id makes it the same on every machine."""
    return (_field(job, "created_at") or 0, job.id)


def _field(job: FineTuningJob, name: str) -> Any:
    """A field of a job, or None: some providers leave out fields that OpenAI's description requires."""
    return getattr(job, name, None)


def _cancel_duplicates(service: Service, run: Run, job: FineTuningJob) -> FineTuningJob:
    """Keep the oldest job under the run's key, cancel the others, and return the one kept.

    Two machines may submit at the same moment, where the journal's lock does not reach: each finds both jobs
    and keeps the same one.
    """
    same = sorted(_with_key(_jobs(service, run), run), key=_age)
    if len(same) < 2:
        return job
    for extra in same[1:]:
        if normal_status(_field(extra, "status")) == "running":
            logger.warning("job %s duplicates %s: cancelling it", extra.id, same[0].id)
            service.call("cancelling a duplicate", partial(service.client.fine_tuning.jobs.cancel, extra.id))
    return same[0]
