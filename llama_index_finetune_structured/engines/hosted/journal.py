"""The run journal: the state of a hosted run, written to disk before each request that must not repeat.

One folder for each run, with ``run.json`` in it. Every write is atomic (a new file, synced and renamed), so
a crash leaves the old state or the new one. A checksum in it shows any later change: a run that cannot be trusted is
never the ground for a submission. API keys are never part of a run.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from ...checksums import read_checked_json, with_checksum
from ...descriptors import lock
from ...errors import CheckpointError, ConfigurationError, EngineError
from ...example import content_hash
from ...files import write_json
from ...jsonl import one_line_reason
from ...printable import package_logger

__all__ = [
    "RUNS_VARIABLE",
    "Run",
    "RunJournal",
    "attached_folder",
    "claimed",
    "find_run",
    "list_runs",
    "run_folder",
    "runs_root",
]

Phase = Literal["new", "submitting", "submitted", "refused"]

logger = package_logger(__name__)

RUNS_VARIABLE = "LLAMA_INDEX_FINETUNE_STRUCTURED_RUNS"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class Run(BaseModel):
    """The state of one hosted run, as stored in the journal.

    - ``data_hash``: hash of the request (model, data, settings), or of an epoch's data for Gradient.
    - ``request``: settings of the request, with hashes for the values of ``extra_body``.
    - ``transport``: form of the answers in the data.
    - ``phase``: ``submitting`` is stored before the job request is sent, ``submitted`` after its reply.
    - ``key``: idempotency key, sent in the job's metadata; it ends with the number of the ``attempt``. For
      Gradient a hash of host, workspace, base model and name.
    - ``known_job_ids``: jobs (adapters) that existed before the request, so are not its own.
    - ``files``: id at the provider of each uploaded file, by SHA-256.
    - ``status``: the provider's own word; ``error``: its reason for a failure.
    - ``progress``: batches and epochs trained so far, for Gradient.
    - ``earlier_jobs``: ids of the jobs of earlier attempts, which failed or were cancelled.

    Times are UTC in ISO format, hashes SHA-256.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    version: Literal[1] = 1
    engine: Literal["openai", "gradient"]
    provider: str
    api_base: str
    base_model: str
    data_path: str
    data_hash: str = ""
    validation_path: str | None = None
    request: dict[str, JsonValue] = Field(default_factory=dict)
    transport: Literal["json_schema", "tools", "text"] | None = None

    phase: Phase = "new"
    attempt: int = 0
    key: str = ""
    known_job_ids: tuple[str, ...] = ()
    files: dict[str, str] = Field(default_factory=dict)
    job_id: str | None = None
    status: str | None = None
    fine_tuned_model: str | None = None
    error: str | None = None
    progress: dict[str, JsonValue] = Field(default_factory=dict)
    earlier_jobs: tuple[str, ...] = ()
    created_at: str = Field(default_factory=_now)
    updated_at: str = ""

    def but(self, **changes: Any) -> Run:
        """A checked copy with these fields changed."""
        return Run.model_validate(self.model_dump() | changes | {"updated_at": _now()})

    def next_attempt(self) -> Run:
        """The run prepared for resubmission, after its job failed or was cancelled."""
        logger.warning("job %s %s; resubmitting", self.job_id, self.status)
        return self.but(
            job_id=None,
            status=None,
            phase="new",
            attempt=self.attempt + 1,
            earlier_jobs=(*self.earlier_jobs, str(self.job_id)),
        )


class RunJournal:
    """The journal of one run, in ``folder``. A crash at any point leaves it readable."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.path = self.folder / "run.json"

    def read(self) -> Run | None:
        """The run as last written, or None. Raises EngineError where the file cannot be read or is not a run."""
        try:
            return Run.model_validate(read_checked_json(self.path))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise EngineError(
                f"{self.path}: cannot be read ({error.strerror}); give the run's own folder, which you can read"
            ) from error
        except ValueError as error:
            raise EngineError(
                f"{self.path}: not a run journal this version can read ({one_line_reason(error)}); nothing is "
                f"submitted from it. Move the file away, and attach to the job with start_job_id='...' (Gradient: "
                f"model_adapter_id='...'), output_dir='{self.folder}'"
            ) from None

    def require(self) -> Run:
        """The run as last written. Raises EngineError when there is none."""
        run = self.read()
        if run is None:
            raise EngineError(f"{self.path}: no such run")
        return run

    def write(self, run: Run) -> Run:
        """Write the run durably (fsync) and return it. The folder is readable by its owner only.

        Raises CheckpointError where it cannot be written.
        """
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_json(self.path, with_checksum(run.model_dump(mode="json")))
        return run

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: the run's folder cannot be written ({error.strerror}); free disk space, or give an "
                "output_dir that you can write"
            ) from error

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; the operating system releases it when the process ends.

        Raises CheckpointError where the folder cannot be written.
        """
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            lock(descriptor, wait=True)
            yield
        finally:
            os.close(descriptor)


def runs_root() -> Path:
    """The folder of all runs: $LLAMA_INDEX_FINETUNE_STRUCTURED_RUNS, else ``finetune-runs``."""
    return Path(os.environ.get(RUNS_VARIABLE) or "finetune-runs")


def run_folder(base_model: str, identity: str) -> Path:
    """The default folder of the run with this ``identity``, a content hash; equal requests share one."""
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", base_model).strip("-.")[:40] or "run"
    return runs_root() / f"{slug}-{identity[:12]}"


def attached_folder(job_id: str) -> Path:
    """The default folder of a run that is attached to by the id of its job, which may be anything."""
    is_name = re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}", job_id)
    return runs_root() / job_id if is_name else run_folder(job_id, content_hash(job_id))


def claimed(journal: RunJournal, run: Run) -> set[str]:
    """The ids of jobs (adapters) that other journals on this machine hold."""
    here = journal.folder.resolve()
    others = [
        other for folder, other in list_runs() if folder.resolve() != here and other.api_base == run.api_base
    ]
    return {job_id for other in others for job_id in (other.job_id, *other.earlier_jobs) if job_id}


def list_runs(root: Path | None = None) -> list[tuple[Path, Run]]:
    """Folder and state of every readable run under ``root``, oldest first."""
    root = root or runs_root()
    runs = []
    for path in sorted(root.glob("*/run.json")):
        try:
            runs.append((path.parent, RunJournal(path.parent).require()))
        except EngineError as error:
            logger.warning("left out: %s", error)
    return sorted(runs, key=lambda item: item[1].created_at)


def find_run(name: str, root: Path | None = None) -> Path:
    """The run folder for ``name``: a path, a folder's name or its beginning, or a job id.

    Raises ConfigurationError unless exactly one run matches.
    """
    if (Path(name) / "run.json").is_file():
        return Path(name)
    matches = [
        folder for folder, run in list_runs(root) if folder.name.startswith(name) or name == run.job_id
    ]
    if len(matches) != 1:
        which = "no run" if not matches else f"{len(matches)} runs"
        raise ConfigurationError(f"{name!r} names {which} under {root or runs_root()}; expected one")
    return matches[0]
