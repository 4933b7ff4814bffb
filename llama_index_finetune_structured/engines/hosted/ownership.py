"""Rules that decide which of the jobs at a provider are this run's.

A job is this run's if its metadata holds the run's key. Where a provider drops metadata, it is this run's if its id
was in the reply to this run's own request and nothing in that reply contradicts the request. No other job is followed
or cancelled, however alike: another machine or person may have asked for the same. The user is asked instead.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from ...printable import one_line
from .journal import Run
from .providers import DEAD, JobRequest, normal_status

if TYPE_CHECKING:
    from openai.types.fine_tuning import FineTuningJob

__all__ = [
    "KEY_NAME",
    "agrees",
    "attempt_of",
    "described",
    "has_key",
    "is_in_reply",
    "job_field",
    "live_jobs",
    "own_jobs",
]

KEY_NAME = "finetune_structured_run"
"""Name of the run's key in the job's metadata."""


def job_field(job: Any, name: str) -> Any:
    """A field of a job, or None: some providers leave out fields that OpenAI's description requires."""
    return getattr(job, name, None)


def _key(job: Any) -> str | None:
    metadata = job_field(job, "metadata")
    key = metadata.get(KEY_NAME) if isinstance(metadata, Mapping) else None
    return key if isinstance(key, str) else None


def has_key(job: Any, run: Run) -> bool:
    """Whether the job was requested by this attempt of the run."""
    return _key(job) == run.key


def attempt_of(job: Any, run: Run) -> int | None:
    """The number of the run's attempt that requested the job, or None where the job is not provably the run's."""
    own = run.key.rpartition("-")[0]
    found = re.fullmatch(rf"{re.escape(own)}-(\d{{1,9}})", _key(job) or "", re.ASCII)
    return int(found[1]) if found and own else None


def own_jobs(jobs: Iterable[FineTuningJob], run: Run) -> list[FineTuningJob]:
    """The jobs with the key of any attempt of the run."""
    return [job for job in jobs if attempt_of(job, run) is not None]


def live_jobs(jobs: Iterable[FineTuningJob]) -> list[FineTuningJob]:
    """The jobs that did not fail and were not cancelled; the one to keep first, the same on every machine."""
    live = (job for job in jobs if normal_status(job_field(job, "status")) not in DEAD)
    return sorted(live, key=_precedence)


def _precedence(job: Any) -> tuple[bool, float, str]:
    created = job_field(job, "created_at")
    is_running = normal_status(job_field(job, "status")) == "running"
    return (is_running, created if isinstance(created, (int, float)) else 0, job.id)


def is_in_reply(job: Any, run: Run, request: JobRequest, claimed: set[str]) -> bool:
    """Whether a reply to the job request describes the requested job.

    Proxies and providers have answered with the job of another request. ``claimed``: ids of other runs' jobs.
    """
    if _key(job) is not None:
        return has_key(job, run)
    return job.id not in claimed and job.id not in run.known_job_ids and agrees(job, request)


def agrees(job: Any, request: JobRequest) -> bool:
    """Whether no field that the provider gives contradicts the request; a field left out contradicts nothing."""
    same = {
        "training_file": request.training_file,
        "validation_file": request.validation_file,
        "user_provided_suffix": request.suffix,
    }
    if any(job_field(job, name) not in (None, "", value) for name, value in same.items()):
        return False
    if request.seed is not None and job_field(job, "seed") not in (None, request.seed):
        return False
    return _same_model(job_field(job, "model"), request.base_model) and _same_hyperparameters(job, request)


def _same_model(found: object, requested: str) -> bool:
    """Whether the model is the requested one, or a dated version of it: gpt-4o-mini runs as gpt-4o-mini-2024-07-18."""
    dated = re.escape(requested) + r"([-@:]v?\d[\w.-]*)?"
    return not isinstance(found, str) or re.fullmatch(dated, found, re.IGNORECASE) is not None


def _same_hyperparameters(job: Any, request: JobRequest) -> bool:
    method = job_field(job, "method")
    by_method = job_field(job_field(method, str(job_field(method, "type"))), "hyperparameters")
    for name, value in request.hyperparameters.items():
        found = [job_field(part, name) for part in (by_method, job_field(job, "hyperparameters"))]
        # "auto" stands in a reply until the provider has chosen the number.
        if value != "auto" and any(part not in (None, "auto", value) for part in found):
            return False
    return True


def described(job: Any) -> str:
    """One line on the job, for the user who decides whether it is theirs."""
    created = job_field(job, "created_at")
    when = "at an unknown time"
    if isinstance(created, (int, float)):
        with contextlib.suppress(ValueError, OverflowError, OSError):  # milliseconds, NaN
            when = datetime.fromtimestamp(created, timezone.utc).isoformat(timespec="seconds")
    key = f", with another run's key, {_key(job)}" if _key(job) else ""
    return one_line(
        f"{job.id}: created {when}, {job_field(job, 'status')}, model {job_field(job, 'model')}{key}"
    )
