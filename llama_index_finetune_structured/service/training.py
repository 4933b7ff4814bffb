"""The training of one job: check of its files, the engine's run, its result as a model and a file of metrics."""

from __future__ import annotations

import asyncio
import csv
import io
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, update

from ..checksums import read_checked_json
from ..dataset.checks.problems import refuse_errors
from ..dataset.checks.report import CheckReport
from ..engines.lora import LoraFinetuneEngine
from ..engines.lora_steps import TrainingStep
from ..errors import ConfigurationError, DatasetError, FinetuneStructuredError
from ..formats.preferences import read_preferences
from ..local.model.base_models import resolve, text_config
from ..local.train.recipe import GOING_ON_RATE, PREFERENCE_RATE, learning_rate_of, rows_of_length
from ..local.train.settings import LoraSettings
from .blobs import Blob, Blobs
from .database import Database, Record, checkpoints, jobs, new_id, now
from .errors import ApiError
from .job_files import check_job_file
from .job_requests import ACTIVE, ENDED
from .job_rows import add_event, add_held_out_loss, change_job, job_row
from .json_log import log_failure
from .models import ModelStore
from .settings import ServiceSettings
from .stored_files import add_file

__all__ = ["JobTraining"]

_MOST_WARNINGS = 20  # chosen: of a training file, as events


class _Left(Exception):
    """The job is not this worker's any more: it was cancelled, paused, or the worker is to end."""


class JobTraining:
    """One job in the hands of one worker, which holds the job's lock. ``stop``: set where the worker is to end."""

    def __init__(
        self,
        job: Record,
        settings: ServiceSettings,
        database: Database,
        blobs: Blobs,
        stop: threading.Event,
    ) -> None:
        self._job, self._settings, self._database, self._blobs, self._stop = (
            job,
            settings,
            database,
            blobs,
            stop,
        )
        self._folder = settings.runs_folder / job.id
        self._share = 1.0  # of the planned steps that were taken

    def run(self) -> None:
        """Take the job as far as it goes: to its end, or to the step at which it is to stop."""
        param, code = "training_file", "invalid_training_file"
        try:
            base = self._settings.bases.get(self._job.model)
            if base is None:
                raise ConfigurationError(f"the base model {self._job.model!r} is not offered any more")
            if self._job.taken is None:
                self._check(base, "training")
                if self._job.validation_sha256 is not None:
                    param, code = "validation_file", "invalid_validation_file"
                    self._check(base, "validation")
                    param, code = "training_file", "invalid_training_file"
            self._train(base)
        except (_Left, KeyboardInterrupt):
            pass
        except DatasetError as error:
            self._fail(str(error), code, param)
        except FinetuneStructuredError as error:
            self._fail(str(error), "training_failed", None)
        except Exception as error:
            log_failure(error, self._job.id)
            self._fail(
                "The server had an error. Its log has more under the job's id.", "internal_error", None
            )

    def _check(self, base: str, kind: str) -> None:
        """Check every line of a file. Raises DatasetError, which names the lines."""
        name = self._job._mapping[f"{kind}_name"]
        self._write(lambda c: add_event(c, self._job.id, f"Validating {kind} file: {name}"))
        report = check_job_file(self._path(kind), self._job.method, base, self._settings.training)
        refuse_errors(report.problems)

        def record(connection: Connection) -> None:
            for problem in report.problems[:_MOST_WARNINGS]:
                add_event(connection, self._job.id, self._told(str(problem)), level="warn")
            if kind == "training":
                taken = self._taken(base, report)
                change_job(connection, self._job.id, taken=taken, trained_tokens=report.tokens)

        self._write(record)

    def _taken(self, base: str, report: CheckReport) -> dict[str, Any]:
        """The hyperparameters that ``auto`` leaves to the engine stay open, but where the rate depends on them."""
        asked = self._job.hyperparameters
        taken = {name: value for name, value in asked.items() if value not in ("auto", None)}
        factor = taken.get("learning_rate_multiplier")
        if factor is not None:
            own = self._settings.training.batch_size or rows_of_length(report.tokens / report.good)
            rows = taken.setdefault("batch_size", own)
            width: int = text_config(resolve(base)).hidden_size
            share = PREFERENCE_RATE if self._is_dpo else GOING_ON_RATE if self._job.start_model else 1.0
            taken["learning_rate"] = factor * share * learning_rate_of(width, rows)
        return taken

    def _train(self, base: str) -> None:
        with self._database.read() as connection:
            taken = job_row(connection, self._job.id).taken or {}
        names = {"n_epochs": "epochs", **{name: name for name in ("batch_size", "learning_rate", "beta")}}
        own = {names[name]: value for name, value in taken.items() if name in names}
        config = LoraSettings(**{**self._settings.training.model_dump(), **own, "seed": self._job.seed})
        engine = LoraFinetuneEngine(
            **self._data(),
            base_model=base,
            output_dir=self._folder,
            config=config,
            start_from=self._start_adapter(),
            replay_share=0,
        )
        self._write(self._begin)
        engine.finetune(self._on_step)
        self._succeed(read_checked_json(self._folder / "training_log.json"))

    @property
    def _is_dpo(self) -> bool:
        return bool(self._job.method == "dpo")

    def _data(self) -> dict[str, Any]:
        """The job's rows, as the engine takes them."""
        kinds = ["training"] + ["validation"] * (self._job.validation_sha256 is not None)
        if not self._is_dpo:
            return dict(zip(("data", "validation"), map(self._path, kinds), strict=False))
        pairs = [read_preferences(self._path(kind)) for kind in kinds]
        accepted = dict(zip(("data", "validation"), (good for good, _ in pairs), strict=False))
        return {**accepted, "rejects": [example for _, rejected in pairs for example in rejected]}

    def _start_adapter(self) -> Path | None:
        """The adapter that the job goes on from. Raises ConfigurationError where its model was deleted."""
        if self._job.start_model is None:
            return None
        store = ModelStore(self._database, self._settings)
        try:
            with self._database.read() as connection:
                owner = job_row(connection, self._job.id).owner  # a first key may have taken the job over
            return store.find(self._job.start_model, owner).adapter
        except ApiError as error:
            raise ConfigurationError(
                f"the model {self._job.start_model!r}, to go on from, was deleted"
            ) from error

    def _begin(self, connection: Connection) -> None:
        if job_row(connection, self._job.id).status != "running":
            change_job(connection, self._job.id, status="running")
            add_event(connection, self._job.id, "Fine-tuning job started")

    def _on_step(self, done: TrainingStep) -> None:
        """Write down a step. Raises KeyboardInterrupt where the job is to stop."""
        self._share = done.step / done.total_steps
        data: dict[str, Any] = {
            "step": done.step,
            "total_steps": done.total_steps,
            "train_loss": done.loss,
            "learning_rate": done.learning_rate,
        }

        with self._database.write() as connection:
            status = job_row(connection, self._job.id).status
            if status in ENDED:
                raise KeyboardInterrupt
            text = f"Step {done.step}/{done.total_steps}: training loss={done.loss:.4f}"
            is_new = add_event(connection, self._job.id, text, data=data, step=done.step)
            if done.validation_step is not None and done.validation_loss is not None:
                add_held_out_loss(connection, self._job.id, done.validation_step, done.validation_loss)
            left = round((done.total_steps - done.step) * done.seconds)
            progress = {"attempts": 0} if is_new else {}
            change_job(connection, self._job.id, estimated_finish=now() + left, **progress)
        if self._stop.is_set() or status not in ACTIVE:  # the step of a paused job is done, and written down
            raise KeyboardInterrupt

    def _write(self, change: Callable[[Connection], object]) -> None:
        """Change the job in one transaction. Raises _Left where it was cancelled, paused or queued meanwhile."""
        with self._database.write() as connection:
            if job_row(connection, self._job.id).status not in ACTIVE:
                raise _Left
            change(connection)

    def _succeed(self, log: dict[str, Any]) -> None:
        """Register model, checkpoint and metrics, all in the transaction that ends the job."""
        job, settings = self._job, log["settings"]
        name = f"ft:{job.model}:{self._settings.organization}:{job.suffix or ''}:{job.id[-12:]}"
        kept = min(log["validation"], key=lambda entry: entry["loss"], default=None)
        step = kept["step"] if kept else len(log["steps"])
        metrics = {"step": step, "train_loss": log["steps"][step - 1]["loss"]}
        metrics |= {"full_valid_loss": kept["loss"]} if kept else {}

        def record(connection: Connection, blob: Blob) -> None:
            row = job_row(connection, job.id)
            if row.status not in ACTIVE:
                raise _Left
            file_id = add_file(
                connection, blob, owner=row.owner, filename="step_metrics.csv", purpose="fine-tune-results"
            )
            taken = {
                **(row.taken or {}),
                "n_epochs": settings["epochs"],
                "batch_size": settings["batch_size"],
            }
            taken |= {"beta": settings["beta"]} if self._is_dpo else {}
            taken.pop("learning_rate", None)
            taken.setdefault("learning_rate_multiplier", 1.0)  # of the rate of 'auto'
            tokens = round((row.trained_tokens or 0) * settings["epochs"] * self._share)
            for entry in log["validation"]:
                add_held_out_loss(connection, job.id, entry["step"], entry["loss"])
            ModelStore(self._database, self._settings).register(connection, row, name)
            checkpoint = {"id": new_id("ftckpt_"), "created_at": now(), "job_id": job.id}
            connection.execute(
                insert(checkpoints).values(**checkpoint, model=name, step=step, metrics=metrics)
            )
            add_event(connection, job.id, f"New fine-tuned model created: {name}")
            add_event(connection, job.id, "The job has successfully completed")
            change_job(
                connection,
                job.id,
                status="succeeded",
                finished_at=now(),
                fine_tuned_model=name,
                result_file=file_id,
                trained_tokens=tokens,
                taken=taken,
            )

        csv_file = _metrics_csv(log)
        asyncio.run(self._blobs.store(_stream(csv_file), len(csv_file), record))
        shutil.rmtree(self._folder / "checkpoints", ignore_errors=True)

    def _fail(self, message: str, code: str, param: str | None) -> None:
        """End the job with an error, unless it was cancelled or paused meanwhile."""
        told = self._told(message)
        error = {"code": code, "message": told, "param": param}
        with self._database.write() as connection:
            values = {"status": "failed", "finished_at": now(), "error": error, "trained_tokens": None}
            where = (jobs.c.id == self._job.id, jobs.c.status.in_(ACTIVE))
            if connection.execute(update(jobs).where(*where).values(values)).rowcount:
                add_event(connection, self._job.id, told, level="error", data={"error_code": code})

    def fail(self, message: str) -> None:
        """End a job that cannot be trained."""
        self._fail(message, "worker_died", None)

    def leave(self) -> None:
        """Remove what an ended job does not need any more."""
        self._blobs.discard(
            sha256 for sha256 in (self._job.training_sha256, self._job.validation_sha256) if sha256
        )

    def _path(self, kind: str) -> Path:
        return self._blobs.path(self._job._mapping[f"{kind}_sha256"])

    def _told(self, text: str) -> str:
        """A text of the engine for the client: with the names that it knows in place of this machine's paths."""
        for kind in ("training", "validation"):
            if self._job._mapping[f"{kind}_sha256"] is not None:
                text = text.replace(str(self._path(kind)), self._job._mapping[f"{kind}_name"])
        base = self._settings.bases.get(self._job.model)
        if base is not None:
            with suppress(FinetuneStructuredError):
                text = text.replace(str(resolve(base).path), self._job.model)
            text = text.replace(base, self._job.model)
        return text.replace(str(self._folder), self._job.id).replace(str(self._settings.folder), "")


def _metrics_csv(log: dict[str, Any]) -> bytes:
    """A row a step: its loss, its learning rate, and the loss of the held-out rows where it was measured."""
    measured = {entry["step"]: entry["loss"] for entry in log["validation"]}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["step", "train_loss", "learning_rate", "full_valid_loss"])
    for entry in log["steps"]:
        step = int(entry["step"])
        table.writerow([step, entry["loss"], entry["learning_rate"], measured.get(step, "")])
    return text.getvalue().encode()


async def _stream(content: bytes) -> AsyncIterator[bytes]:
    yield content
