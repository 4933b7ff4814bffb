"""Which run to go on with: a new one, this or a dead process's, a job from elsewhere, the next attempt."""

from __future__ import annotations

from ...errors import ConfigurationError
from ...example import content_hash
from .client import Service
from .follow import current_job, recorded
from .journal import Journal, Run, list_runs, runs_root
from .plan import Plan
from .providers import DEAD, normal_status
from .training_file import TrainingFile

__all__ = ["attached", "opened"]


def opened(plan: Plan, service: Service, journal: Journal, files: list[TrainingFile]) -> Run:
    """The run in this journal, ready to be submitted or already with a live job.

    The folder's name is part of its key, so that the same request in folders of two names makes two jobs, and
    the same folder on two machines one.
    Raises ConfigurationError when the folder holds another request.
    """
    identity = plan.identity(service, files)
    run = journal.read() or plan.run(service, files)
    if run.data_hash and run.data_hash != identity:
        raise ConfigurationError(
            f"{journal.folder}: holds another run (other data, model or settings); give another run_dir"
        )
    if run.job_id is not None:
        run = recorded(journal, run, current_job(service, run.job_id))
        if normal_status(run.status) in DEAD:
            run = run.next_attempt()
    if run.job_id is None and run.phase != "submitting":
        key = content_hash([identity, journal.folder.name])[:32]
        run = run.but(phase="new", data_hash=identity, key=f"{key}-{run.attempt}", fine_tuned_model=None)
    return journal.write(run)


def attached(plan: Plan, service: Service, journal: Journal | None, job_id: str) -> Journal:
    """The journal of a job that exists at the provider; a new one where none knows the job.

    Raises ConfigurationError where the given journal is another job's.
    """
    known = [folder for folder, run in list_runs() if run.job_id == job_id]
    journal = journal or Journal(known[0] if known else runs_root() / job_id)
    job = current_job(service, job_id)
    run = journal.read() or plan.run(service, [])
    if run.job_id not in (None, job_id):
        raise ConfigurationError(f"{journal.folder}: holds the run of job {run.job_id}; give another run_dir")
    recorded(journal, journal.write(run.but(phase="submitted", job_id=job_id, error=None)), job)
    return journal
