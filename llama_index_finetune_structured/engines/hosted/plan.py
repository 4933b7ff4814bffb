"""The plan of a hosted run (model, data, settings), and the run in the journal that it belongs to."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from ...errors import ConfigurationError
from ...example import Transport, content_hash
from ..base import Data, named_file
from .client import Service
from .follow import current_job, recorded
from .journal import Run, RunJournal, attached_folder, list_runs, runs_root
from .ownership import KEY_NAME
from .providers import DEAD, JobRequest, normal_status
from .training_file import TrainingFile, preflight, prepare, transport_of

__all__ = ["JobPlan", "attach_run", "checked_settings", "open_run", "possible_secrets"]

_MAPPINGS = ("hyperparameters", "extra_body")
_HASHED = "sha256:"
_SHORTEST_SECRET = 16  # chosen: keys of services are longer


@dataclass(frozen=True)
class JobPlan:
    """The user's request: model, data, validation data and transport, before anything is uploaded.

    ``settings`` holds hyperparameters, suffix, seed and extra_body. ``validate_json``: check the files first.
    """

    base_model: str
    data: Data
    validation: Data | None
    settings: Mapping[str, Any] = field(repr=False)
    transport: Transport | None
    validate_json: bool

    def files(self, service: Service) -> list[TrainingFile]:
        """The training file and, if there is one, the validation file, checked."""
        mark = service.provider.byte_order_mark
        sources = [("train", self.data), ("validation", self.validation)]
        files = []
        for name, data in sources:
            if data is None:
                continue
            path = named_file(data)
            if self.validate_json and path is not None:  # problems by the lines of the user's own file
                preflight(path)
            files.append(prepare(data, runs_root() / "data", byte_order_mark=mark, name=name))
            if self.validate_json and path is None:
                preflight(files[-1].path)
        return files

    def identity(self, service: Service, files: list[TrainingFile]) -> str:
        """Content hash of provider, address, model, files and settings: equal for equal requests."""
        where = [service.provider.name, service.api_base, self.base_model]
        return content_hash([where, [file.sha256 for file in files], self.kept_settings()])

    def kept_settings(self) -> dict[str, Any]:
        """The settings as the journal keeps them: of ``extra_body``, which may hold secrets, hashes of the values."""
        hashed = {name: _hashed(value) for name, value in self.settings["extra_body"].items()}
        return {**self.settings, "extra_body": hashed}

    def new_run(self, service: Service, files: list[TrainingFile]) -> Run:
        """A run in its first phase. Without ``files`` (an attached job) it names the data as the user did."""
        path = files[0].path if files else self._named_path()
        transport = files[0].transport if files else None
        if not files and path is not None and path.is_file():
            transport = transport_of(path)
        return Run(
            engine="openai",
            provider=service.provider.name,
            api_base=service.api_base,
            base_model=self.base_model,
            data_path=str(path or ""),
            validation_path=str(files[1].path) if len(files) > 1 else None,
            request=self.kept_settings(),
            transport=self.transport or transport,
        )

    def _named_path(self) -> Path | None:
        return Path(self.data) if isinstance(self.data, (str, os.PathLike)) else None

    def request(self, run: Run, files: list[TrainingFile]) -> JobRequest:
        """The job request, with the ids of the uploaded files and the run's key.

        Raises ConfigurationError where the settings are a journal's and some of their values only hashes.
        """
        lost = [name for name, value in self.settings["extra_body"].items() if value == _hashed(value)]
        if lost:
            raise ConfigurationError(
                f"extra_body: the journal holds only hashes of {', '.join(lost)}; to submit again, pass extra_body="
            )
        ids = [run.files[file.sha256] for file in files]
        return JobRequest(
            base_model=self.base_model,
            training_file=ids[0],
            validation_file=ids[1] if len(ids) > 1 else None,
            metadata={KEY_NAME: run.key},
            **self.settings,
        )


def open_run(plan: JobPlan, service: Service, journal: RunJournal, files: list[TrainingFile]) -> Run:
    """The journal's run, ready for submission or with a live job; a new run where the journal is empty.

    A run whose job failed or was cancelled is prepared for its next attempt. The folder's name is part of
    the run's key, so that one request in two folders makes two jobs, and one folder name on two machines one.

    Raises ConfigurationError when the journal holds another request.
    """
    identity = plan.identity(service, files)
    run = journal.read() or plan.new_run(service, files)
    if run.data_hash and run.data_hash != identity:
        raise ConfigurationError(
            f"{journal.folder}: holds another run (other data, model or settings); give another output_dir"
        )
    if run.job_id is not None:
        run = recorded(service, journal, run, current_job(service, run.job_id))
        if normal_status(run.status) in DEAD:
            run = run.next_attempt()
    # A run in phase "submitting" may have a job already, under its present key: that key must stay.
    if run.job_id is None and run.phase != "submitting":
        key = content_hash([identity, journal.folder.name])[:32]
        run = run.but(phase="new", data_hash=identity, key=f"{key}-{run.attempt}", fine_tuned_model=None)
    return journal.write(run)


def attach_run(plan: JobPlan, service: Service, journal: RunJournal | None, job_id: str) -> RunJournal:
    """The journal of a job that exists at the provider; a new one where no known journal has the job.

    Raises ConfigurationError where ``journal`` is given and holds another job.
    """
    known = [folder for folder, run in list_runs() if run.job_id == job_id]
    journal = journal or RunJournal(known[0] if known else attached_folder(job_id))
    job = current_job(service, job_id)
    with journal.lock():
        run = journal.read() or plan.new_run(service, [])
        if run.job_id not in (None, job_id):
            raise ConfigurationError(
                f"{journal.folder}: holds the run of job {run.job_id}; give another output_dir"
            )
        recorded(service, journal, journal.write(run.but(phase="submitted", job_id=job_id, error=None)), job)
    return journal


def _hashed(value: Any) -> str:
    """The hash of a value; of a hash, itself."""
    is_hash = isinstance(value, str) and re.fullmatch(_HASHED + "[0-9a-f]{64}", value)
    return str(value) if is_hash else _HASHED + content_hash(value)


def possible_secrets(value: Any) -> tuple[SecretStr, ...]:
    """The texts in ``extra_body`` that are long enough to be keys; shorter ones are words, which errors may name."""
    if isinstance(value, str):
        return (SecretStr(value),) if len(value) >= _SHORTEST_SECRET else ()
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return tuple(secret for part in parts for secret in possible_secrets(part))


def checked_settings(**settings: Any) -> dict[str, Any]:
    """The settings as JSON values. Raises ConfigurationError for one that cannot be sent."""
    for name, value in settings.items():
        try:
            settings[name] = json.loads(
                json.dumps(dict(value) if name in _MAPPINGS else value, allow_nan=False)
            )
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigurationError(f"{name}: cannot be sent as JSON ({error})") from error
    return settings
