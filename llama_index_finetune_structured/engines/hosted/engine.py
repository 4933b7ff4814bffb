"""``OpenAIFinetuneEngine``: fine-tuning over OpenAI's protocol, at OpenAI or another provider."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...capture.known_secrets import remember_secrets_in
from ...errors import ConfigurationError, EngineError
from ...example import Transport
from ...printable import one_line, package_logger
from ..base import Data, FinetuneEngine, one_of_data
from ..timeouts import Timeouts
from .client import connect, model_description, read_rows
from .deprecations import warn_of_sunset
from .follow import cancel_job, current_job, follow, raise_unless_succeeded, recorded
from .journal import Run, RunJournal, run_folder
from .plan import JobPlan, attach_run, checked_settings, open_run, possible_secrets
from .progress import Progress, metric_rows
from .providers import normal_status, provider_named
from .submission import keep_one, submit, upload
from .training_file import TrainingFile
from .tuned_model import tuned_llm

if TYPE_CHECKING:
    from llama_index.core.llms import LLM
    from openai.types.fine_tuning import FineTuningJob
    from typing_extensions import Self

__all__ = ["OpenAIFinetuneEngine"]

logger = package_logger(__name__)


class OpenAIFinetuneEngine(FinetuneEngine):
    """Fine-tune a hosted model over OpenAI's protocol: one job, submitted once and followed to its end.

    The methods that begin with ``a``, and ``await_job``, are for asyncio. Needs the extra ``openai``.

    Args:
        base_model: The provider's name of the model to fine-tune.
        data_path: ``data`` under llama-index-finetuning's name; pass one of the two.
        verbose: Show the progress bar without a terminal as well.
        start_job_id: Attach to a job that was not submitted by this package, or whose submission finetune() asks about.
        validate_json: Check the files before the upload.
        data: A training file or a FinetuneDataset.
        validation: The same for held-out rows.
        output_dir: Folder of the run's journal. None: one folder for each distinct request (model, data,
            settings) under $LLAMA_INDEX_FINETUNE_STRUCTURED_RUNS or ``finetune-runs``, so that the same
            script run again re-attaches to its job and does not pay twice. A folder of another name trains
            the same again.
        api_key: The key. None: the provider's environment variable, such as $OPENAI_API_KEY. Never written to
            disk.
        api_base: Another address, of any server with the protocol. None: from the environment
            ($OPENAI_BASE_URL, ...), else the provider's own; azure has none.
        provider: ``openai``, ``azure`` or ``nebius``.
        hyperparameters: Sent to the provider unchanged.
        suffix: Sent to the provider, for the tuned model's name; azure takes 1-40 letters, digits, - and _.
        seed: Sent to the provider, for a repeatable training.
        extra_body: More fields of the job request. The journal holds only hashes of their values, which may be secrets.
        transport: Form of the tuned model's answers: ``tools``, ``json_schema`` or ``text``. None: that of
            the data.
        timeouts: Time limits and polling intervals. None: the defaults of ``Timeouts``.
        resubmit: Where finetune() has asked whether an earlier request made a job: it made none, so the next
            finetune() sends the request again. Without effect elsewhere.

    Raises:
        ConfigurationError: Not exactly one of ``data`` and ``data_path`` is given; the provider is unknown;
            key or address is missing or cannot be used; ``api_base`` holds credentials; a setting cannot be sent as
            JSON; or ``output_dir`` holds another job.
        MissingDependencyError: The extra ``openai`` is not installed.
        EngineError: The provider does not know ``start_job_id``, or does not answer; or ``output_dir`` cannot be
            read or written.
    """

    def __init__(
        self,
        base_model: str,
        data_path: Data | None = None,
        verbose: bool = False,
        start_job_id: str | None = None,
        validate_json: bool = True,
        *,
        data: Data | None = None,
        validation: Data | None = None,
        output_dir: str | os.PathLike[str] | None = None,
        api_key: str | None = None,
        api_base: str | None = None,
        provider: str = "openai",
        hyperparameters: Mapping[str, Any] | None = None,
        suffix: str | None = None,
        seed: int | None = None,
        extra_body: Mapping[str, Any] | None = None,
        transport: Transport | None = None,
        timeouts: Timeouts | None = None,
        resubmit: bool = False,
    ) -> None:
        settings = checked_settings(
            hyperparameters=hyperparameters or {}, suffix=suffix, seed=seed, extra_body=extra_body or {}
        )
        remember_secrets_in(settings["extra_body"])
        if transport not in (None, "tools", "json_schema", "text"):
            raise ConfigurationError(f"transport {transport!r}: expected tools, json_schema or text")
        rows = one_of_data(data, data_path)
        self._plan = JobPlan(base_model, rows, validation, settings, transport, validate_json)
        self._verbose = verbose
        self._resubmit = resubmit
        self._service = connect(
            provider_named(provider),
            api_base=api_base,
            api_key=api_key,
            timeouts=timeouts or Timeouts(),
            secrets=possible_secrets(settings["extra_body"]),
        )
        self._journal: RunJournal | None = RunJournal(output_dir) if output_dir is not None else None
        if start_job_id is not None:
            self._journal = attach_run(self._plan, self._service, self._journal, start_job_id)

    @classmethod
    def _from_file(cls, base_model: str, data: Path, **options: Any) -> Self:
        return cls(base_model, data=data, **options)

    @classmethod
    def from_run(
        cls, output_dir: str | os.PathLike[str], *, api_key: str | None = None, **options: Any
    ) -> Self:
        """Re-attach to a run by its folder, whose journal holds all settings except the key.

        Args:
            output_dir: The run's folder, as in ``engine.output_dir``.
            api_key: As for the constructor.
            **options: Constructor parameters that the journal does not hold: ``verbose``, ``validate_json``,
                ``timeouts``, ``resubmit``; and ``extra_body``, which only finetune() needs, to submit again.

        Raises:
            ConfigurationError: The folder holds a run of another engine.
            EngineError: The folder holds no run, or its journal is unreadable.
        """
        run = RunJournal(output_dir).require()
        if run.engine != "openai":
            raise ConfigurationError(f"{output_dir}: a run of the {run.engine} engine, expected openai")
        settings: dict[str, Any] = dict(run.request)
        return cls(
            run.base_model,
            data=run.data_path,
            api_base=run.api_base,
            api_key=api_key,
            provider=run.provider,
            validation=run.validation_path,
            transport=run.transport,
            output_dir=output_dir,
            **settings | options,
        )

    @property
    def output_dir(self) -> Path:
        """The folder of this run's journal.

        Where none was passed, the data is read and checked first: its content is part of the folder's name.

        Raises:
            ConfigurationError: There is no such training file.
            DatasetError: The check (``validate_json``) finds errors.
        """
        return self._find_journal().folder

    # -- submitting --

    def finetune(self) -> None:
        """Check and upload the data and submit the job, unless this run has one; return without waiting.

        A job that failed or was cancelled is resubmitted. Issues a SunsetWarning where the service or the
        model closes soon.

        Raises:
            ConfigurationError: There is no such training file, the provider does not accept a setting, or
                ``output_dir`` holds another run.
            DatasetError: The check (``validate_json``) finds errors, with ``file:line``.
            EngineError: The provider refuses the file or the job, with its own reason; or it does not answer
                within ``timeouts.submit_s``; or whether a request made a job is unknown, with the jobs that may be
                its own and how to go on; or the run's folder cannot be read or written.
        """
        files = self._plan.files(self._service)
        journal = self._find_journal(files)
        with journal.lock():
            run = open_run(self._plan, self._service, journal, files)
            if run.job_id is not None:
                run = keep_one(self._service, journal, run)
                logger.info("already submitted: job %s is %s", run.job_id, run.status)
                return
            self._warn_of_sunset()
            if run.phase != "submitting":  # else the request with these files was sent, and is looked for
                ids = dict(run.files)
                for file in files:
                    ids[file.sha256] = upload(self._service, file, ids.get(file.sha256))
                    run = journal.write(run.but(files=ids))
            resubmit, self._resubmit = self._resubmit, False
            run = submit(self._service, journal, self._plan.request(run, files), resubmit=resubmit)
        logger.info("submitted job %s; its journal is %s", run.job_id, journal.path)

    def _warn_of_sunset(self) -> None:
        model = self._plan.base_model
        announced = getattr(model_description(self._service, model), "shutdown_date", None)
        warn_of_sunset(model, self._service.api_base, self._service.timeouts.clock.today(), announced)

    # -- the journal --

    def _find_journal(self, files: list[TrainingFile] | None = None) -> RunJournal:
        if self._journal is None:
            files = files if files is not None else self._plan.files(self._service)
            identity = self._plan.identity(self._service, files)
            self._journal = RunJournal(run_folder(self._plan.base_model, identity))
        return self._journal

    def _submitted(self) -> tuple[RunJournal, Run]:
        journal = self._find_journal()
        run = journal.read()
        if run is None or run.job_id is None:
            raise EngineError(f"{journal.folder}: no job submitted yet; call finetune() first")
        return journal, run

    # -- following the job --

    def get_current_job(self) -> FineTuningJob:
        """The job's present state at the provider.

        Raises:
            EngineError: finetune() was not called before, or the provider does not answer.
        """
        journal, run = self._submitted()
        job = current_job(self._service, str(run.job_id))
        recorded(self._service, journal, run, job)
        return job

    def wait(self, timeout_s: float | None = None) -> FineTuningJob:
        """Wait for the end of the job, with a progress bar, and return the job that succeeded.

        Args:
            timeout_s: Longest wait in seconds. None: ``timeouts.job_s``.

        Raises:
            EngineError: The job failed, was cancelled, or has not ended after ``timeout_s``. In the last case
                the job goes on, and wait() may be called again. Also before finetune().
        """
        self._follow(timeout_s, needs_name=True)
        return self._succeeded_job()

    def _follow(self, timeout_s: float | None, *, needs_name: bool) -> None:
        with self._following(timeout_s, needs_name) as steps:
            for pause_s in steps:
                self._service.timeouts.clock.sleep(pause_s)

    async def await_job(self, timeout_s: float | None = None) -> FineTuningJob:
        """``wait()`` for asyncio; cancelling the task ends the waiting, not the job.

        Args:
            timeout_s: As for ``wait()``.

        Raises:
            EngineError: As ``wait()``.
        """
        await self._afollow(timeout_s, needs_name=True)
        return await asyncio.to_thread(self._succeeded_job)

    async def _afollow(self, timeout_s: float | None, *, needs_name: bool) -> None:
        with self._following(timeout_s, needs_name) as steps:
            while (pause_s := await asyncio.to_thread(next, steps, None)) is not None:
                await self._service.timeouts.clock.asleep(pause_s)

    @contextmanager
    def _following(
        self, timeout_s: float | None, needs_name: bool
    ) -> Generator[Generator[float, None, None], None, None]:
        if timeout_s is not None and not timeout_s >= 0:
            raise ConfigurationError(f"timeout_s is {timeout_s}, expected seconds, or None")
        journal, run = self._submitted()
        progress = Progress(str(run.job_id), verbose=self._verbose)
        bound_s = self._service.timeouts.job_s if timeout_s is None else timeout_s
        try:
            yield follow(self._service, journal, bound_s, progress, needs_name=needs_name)
        finally:
            progress.close()

    def _succeeded_job(self) -> FineTuningJob:
        raise_unless_succeeded(self._submitted()[1])
        return self.get_current_job()

    def cancel(self) -> FineTuningJob:
        """Ask the provider to stop the job; a job that has ended is returned unchanged.

        Raises:
            EngineError: finetune() was not called before, or the provider does not stop a running job.
        """
        journal, run = self._submitted()
        job = cancel_job(self._service, str(run.job_id))
        recorded(self._service, journal, run, job)
        return job

    def metrics(self) -> list[dict[str, float]]:
        """The losses and accuracies so far, one row for each step, under the provider's names.

        Returns:
            Rows in the order of their steps, with ``step``, ``train_loss`` and what else the events hold.

        Raises:
            EngineError: finetune() was not called before, or the provider does not answer.
        """
        _, run = self._submitted()
        newest = partial(self._service.client.fine_tuning.jobs.list_events, str(run.job_id), limit=100)
        events = self._service.call(
            f"reading the events of {run.job_id}", lambda: read_rows(newest, "events", with_ids=False)
        )
        return metric_rows(reversed(events))

    # -- the result --

    def get_finetuned_model(self, **llm_kwargs: Any) -> LLM:
        """Wait for the job and return its model as a LlamaIndex LLM at the same ``api_base``.

        It uses the transport it was trained for.

        Args:
            **llm_kwargs: Settings of the LLM (temperature, context_window, ...). ``model`` is the name of the
                deployment or served adapter where that differs.

        Raises:
            EngineError: The job failed, was cancelled, or has not ended after ``timeouts.job_s``; or the
                provider serves the model under a name that only ``model`` can give. Also before finetune().
        """
        needs_name = "model" not in llm_kwargs
        if not self._is_done(needs_name):
            self._follow(None, needs_name=needs_name)
        return self._model(llm_kwargs)

    async def aget_finetuned_model(self, **llm_kwargs: Any) -> LLM:
        """``get_finetuned_model()`` for asyncio; cancelling the task ends the waiting, not the job.

        Args:
            **llm_kwargs: As for ``get_finetuned_model()``.

        Raises:
            EngineError: As ``get_finetuned_model()``.
        """
        needs_name = "model" not in llm_kwargs
        if not await asyncio.to_thread(self._is_done, needs_name):
            await self._afollow(None, needs_name=needs_name)
        return await asyncio.to_thread(self._model, llm_kwargs)

    def _is_done(self, needs_name: bool) -> bool:
        _, run = self._submitted()
        return normal_status(run.status) == "succeeded" and bool(run.fine_tuned_model or not needs_name)

    def _model(self, llm_kwargs: dict[str, Any]) -> LLM:
        _, run = self._submitted()
        raise_unless_succeeded(run)
        return tuned_llm(self._service, run, self._plan.transport, llm_kwargs)

    async def aget_current_job(self) -> FineTuningJob:
        """``get_current_job()`` for asyncio."""
        return await asyncio.to_thread(self.get_current_job)

    async def acancel(self) -> FineTuningJob:
        """``cancel()`` for asyncio."""
        return await asyncio.to_thread(self.cancel)

    async def ametrics(self) -> list[dict[str, float]]:
        """``metrics()`` for asyncio."""
        return await asyncio.to_thread(self.metrics)

    def __repr__(self) -> str:
        where = f"{self._service.provider.name}, {self._service.api_base}"
        return one_line(f"{type(self).__name__}({self._plan.base_model!r} at {where})")
