"""``GradientFinetuneEngine``: create an adapter over Gradient's protocol once and train it in batches."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ConfigurationError, DatasetError, EngineError, ServiceError
from ..example import content_hash
from ..formats.gradient_samples import gradient_sample
from ..jsonl import READ_ERRORS, Line, one_line_reason, parse_line, read_lines
from ..llms.gradient_api import connect_gradient
from ..printable import package_logger
from ..progress_bar import progress_bar
from .base import Data, FinetuneEngine, one_of_data, path_or_dataset, training_path
from .gradient_adapter import NewAdapter, next_to, retried, runs_of
from .hosted.journal import Run, RunJournal, attached_folder, list_runs, run_folder
from .timeouts import Timeouts

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..llms.gradient import GradientModelAdapterLLM

__all__ = ["GradientFinetuneEngine"]

logger = package_logger(__name__)

T = TypeVar("T")


class GradientFinetuneEngine(FinetuneEngine):
    """Fine-tune a model over Gradient's protocol. Each call of finetune() is one epoch over the data.

    The constructor sends requests: it creates or looks up the adapter. An epoch that was interrupted resumes
    after its last accepted batch.

    Args:
        base_model_slug: Base model of a new adapter; needs ``name``.
        name: Name of the new adapter.
        data_path: ``data`` under llama-index-finetuning's name; pass one of the two.
        verbose: Show the progress bar without a terminal as well.
        max_steps: Number of lines of the file that are used. None: all.
        batch_size: Lines in one request.
        model_adapter_id: An existing adapter to go on with, instead of ``base_model_slug`` and ``name``; also one
            that the constructor asks about.
        data: A training file or a FinetuneDataset.
        output_dir: Folder of the adapter's journal. A folder that holds the journal of an adapter with the
            same slug and name goes on with that adapter. None: a folder for each new adapter under
            $LLAMA_INDEX_FINETUNE_STRUCTURED_RUNS or ``finetune-runs``; the same slug and name then go on with
            an adapter whose epoch is unfinished, also in a new process, and else create a new one.
        resubmit: Where the constructor has asked whether an earlier request created an adapter: it created none, so
            the request is sent again. Without effect elsewhere.
        host: Address of the server. None: $GRADIENT_API_URL. One of them is required, since the hosted
            service is retired.
        access_token: Token of the server. None: $GRADIENT_ACCESS_TOKEN.
        workspace_id: Workspace of the adapter. None: $GRADIENT_WORKSPACE_ID.
        timeouts: Timeout of a request (``request_s``) and the clock. None: the defaults of ``Timeouts``.

    Raises:
        ConfigurationError: Not exactly one of ``data`` and ``data_path``, or of the two ways to name an
            adapter, is given; a number is less than 1; host, token or workspace is missing or the host is the
            retired one or no address; the server has no such base model; or ``output_dir`` holds another run.
        MissingDependencyError: The extra ``gradient`` is not installed.
        EngineError: ``output_dir`` cannot be read or written; or whether a request created an adapter is unknown, with
            the adapters that may be its own and how to go on.
        ServiceError: The server refuses a request, or does not answer after six attempts.
    """

    def __init__(
        self,
        *,
        base_model_slug: str | None = None,
        name: str | None = None,
        data_path: Data | None = None,
        verbose: bool = False,
        max_steps: int | None = None,
        batch_size: int = 1,
        model_adapter_id: str | None = None,
        data: Data | None = None,
        output_dir: str | os.PathLike[str] | None = None,
        host: str | None = None,
        access_token: str | None = None,
        workspace_id: str | None = None,
        timeouts: Timeouts | None = None,
        resubmit: bool = False,
    ) -> None:
        if (model_adapter_id is None) == (base_model_slug is None or name is None):
            raise ConfigurationError("give either base_model_slug and name, or model_adapter_id")
        for value in (batch_size, 1 if max_steps is None else max_steps):
            if not isinstance(value, int) or value < 1:
                raise ConfigurationError(
                    f"batch_size {batch_size}, max_steps {max_steps}: expected 1 or more"
                )
        self._data = one_of_data(data, data_path)
        self._timeouts = timeouts or Timeouts()
        self._api = connect_gradient(host, access_token, workspace_id, self._timeouts.request_s)
        self._verbose = verbose
        self._max_steps = max_steps
        self._batch_size = batch_size
        own_journal = None if output_dir is None else RunJournal(output_dir)
        if model_adapter_id is not None:
            self._journal = self._attach(model_adapter_id, own_journal)
        else:
            self._journal = self._create(str(base_model_slug), str(name), own_journal, resubmit)

    @classmethod
    def _from_file(cls, base_model: str, data: Path, **options: Any) -> Self:
        return cls(base_model_slug=base_model, data=data, **options)

    @property
    def model_adapter_id(self) -> str:
        """The adapter's id; the constructor has created or found it."""
        return str(self._journal.require().job_id)

    @property
    def output_dir(self) -> Path:
        """The folder of this adapter's journal."""
        return self._journal.folder

    # -- the adapter --

    def _attach(self, adapter_id: str, own_journal: RunJournal | None) -> RunJournal:
        """The journal of an existing adapter: ``own_journal``, else the known one, else a new one."""
        adapter = self._retried(lambda: self._api.adapter(adapter_id))
        known = [folder for folder, run in list_runs() if run.job_id == adapter_id]
        journal = own_journal or RunJournal(known[0] if known else attached_folder(adapter_id))
        with journal.lock():
            run = journal.read() or self._new_run(str(adapter.base_model_id))
            if run.job_id is None:
                journal.write(run.but(phase="submitted", job_id=adapter_id, status="attached", error=None))
            elif run.job_id != adapter_id:
                raise ConfigurationError(
                    f"{journal.folder}: holds the run of {run.job_id}; give another output_dir"
                )
        return journal

    def _create(self, slug: str, name: str, own_journal: RunJournal | None, resubmit: bool) -> RunJournal:
        """The journal of an unfinished adapter of this slug and name, or of a new one, created once."""
        identity = content_hash([self._api.host, self._api.workspace_id, slug, name])
        first = own_journal or RunJournal(run_folder(name, identity))
        # All adapters of this identity share the lock of their first folder, so that two processes neither
        # create two adapters at once nor take the same folder.
        with first.lock():
            runs = runs_of(identity, own_journal)
            for journal, run in runs:
                if run.job_id is not None and self._is_resumable(run, own_journal):
                    logger.info("resuming the adapter %s", run.job_id)
                    return journal
            base_id = self._retried(lambda: self._api.base_model_id(slug))
            adapter = NewAdapter(self._api, self._timeouts.clock, base_id, name)
            # A run without an adapter id is of a request that was refused, or whose outcome is unknown.
            incomplete = [(journal, run) for journal, run in runs if run.job_id is None]
            if incomplete:
                journal, run = incomplete[0]
                if run.phase == "submitting" and not resubmit:
                    raise adapter.question(journal, run, run.error or "it was sent by a process that ended")
            else:
                journal = first if own_journal or not runs else next_to(first, len(runs) + 1)
                run = self._new_run(slug).but(key=identity)
            adapter_id = adapter.create_once(journal, run)
            journal.write(journal.require().but(phase="submitted", job_id=adapter_id, status="created"))
        return journal

    def _new_run(self, base_model: str) -> Run:
        data = str(self._data) if isinstance(self._data, (str, os.PathLike)) else ""
        return Run(
            engine="gradient",
            provider="gradient",
            api_base=self._api.host,
            base_model=base_model,
            data_path=data,
        )

    def _is_resumable(self, run: Run, own_journal: RunJournal | None) -> bool:
        """Whether the adapter is to be trained further: it exists, and is unfinished or in a folder of its own.

        Unfinished: no epoch is complete, or one has accepted batches or a batch of unknown outcome.
        """
        progress = run.progress
        unfinished = progress.get("epochs", 0) == 0 or progress.get("accepted", 0) != 0
        if own_journal is None and not unfinished and progress.get("before") is None:
            return False
        try:
            self._retried(lambda: self._api.adapter(str(run.job_id)))
        except ServiceError as error:
            if not error.refused:
                raise
            return False
        return True

    # -- training --

    def finetune(self) -> None:
        """Train one epoch, or the rest of one that was interrupted.

        Raises:
            ConfigurationError: There is no such training file.
            DatasetError: A line is no sample, with ``file:line``; or there are none.
            EngineError: Samples were refused, or not accepted after six attempts, with their numbers; or the run's
                folder cannot be written.
            ServiceError: The adapter's state cannot be read from the server.
        """
        path = training_path(
            path_or_dataset(self._data), self._journal.folder, name="train", format="gradient"
        )
        samples = _read_samples(path, self._max_steps)
        size = self._batch_size
        batches = [samples[start : start + size] for start in range(0, len(samples), size)]
        with self._journal.lock():
            progress = self._start_epoch(path, content_hash([samples, size]))
            with progress_bar(
                total=len(batches),
                initial=progress["accepted"],
                desc="gradient",
                disable=self._bar_disabled(),
            ) as bar:
                for number in range(progress["accepted"], len(batches)):
                    loss = self._train(batches[number], number)
                    bar.set_postfix_str("" if loss is None else f"loss {loss:.3f}")
                    bar.update()
            self._record(epochs=progress["epochs"] + 1, accepted=0, before=None)

    def _bar_disabled(self) -> bool | None:
        return False if self._verbose else None  # None: tqdm shows the bar on a terminal only

    def _start_epoch(self, path: Path, data_hash: str) -> dict[str, Any]:
        run = self._journal.require()
        progress: dict[str, Any] = {"epochs": 0, "accepted": 0, "before": None} | run.progress
        if run.data_hash != data_hash:
            if progress["accepted"]:
                logger.warning(
                    "%s has changed since its epoch was interrupted: starting the epoch again", path
                )
            progress |= {"accepted": 0, "before": None}
        changes = {"data_hash": data_hash, "data_path": str(path), "status": "training"}
        self._journal.write(run.but(progress=progress, **changes))
        return progress

    def _record(self, **progress: Any) -> None:
        """Write changes of ``epochs``, ``accepted`` (batches) and ``before`` (update time) to the journal."""
        run = self._journal.require()
        status = "trained" if progress.get("accepted") == 0 else "training"
        self._journal.write(run.but(progress={**run.progress, **progress}, status=status))

    def _train(self, batch: list[dict[str, Any]], number: int) -> float | None:
        """Train batch ``number`` exactly once; its loss, or None where that was lost with the reply.

        The protocol has no idempotency key, but each accepted batch changes the adapter's update time. That
        time is on disk as ``before`` while a request is under way: a later update time means that the batch
        was accepted, though its reply never came or its process was killed.
        """
        recorded = self._journal.require().progress.get("before")
        before = str(recorded) if recorded else self._updated_at()
        if recorded and self._updated_at() != before:
            self._record(accepted=number + 1, before=None)
            return None
        self._record(before=before)
        reply = self._fine_tune_once(batch, number, before)
        self._record(accepted=number + 1, before=None)
        if reply is None or not reply.number_of_trainable_tokens:
            return None
        return float(reply.sum_loss) / float(reply.number_of_trainable_tokens)

    def _fine_tune_once(self, batch: list[dict[str, Any]], number: int, before: str) -> Any:
        """Send the batch until it is accepted; the reply, or None where an unanswered request was accepted."""
        sent = 0

        def request() -> Any:
            nonlocal sent
            # Only a repetition checks the time: for the first request _train has just done so.
            if sent and self._updated_at() != before:
                return None
            sent += 1
            return self._api.fine_tune(self.model_adapter_id, batch)

        try:
            return self._retried(request)
        except ServiceError as error:
            if error.refused:  # not trained, so the update time need not be compared next time
                self._record(before=None)
            first = number * self._batch_size + 1
            raise EngineError(
                f"samples {first} to {first + len(batch) - 1}: {str(error).removesuffix('.')}. "
                "Call finetune() again to go on after the last accepted batch"
            ) from error

    def _updated_at(self) -> str:
        adapter = self._retried(lambda: self._api.adapter(self.model_adapter_id))
        return str(adapter.latest_update_time.isoformat())

    def _retried(self, request: Callable[[], T]) -> T:
        return retried(self._timeouts.clock, request)

    # -- the result --

    def get_current_job(self) -> Run:
        """The run in the journal; ``progress`` holds completed epochs and accepted batches of this epoch.

        Raises:
            EngineError: The journal is gone or unreadable.
        """
        return self._journal.require()

    def get_finetuned_model(self, **llm_kwargs: Any) -> GradientModelAdapterLLM:
        """The adapter as a LlamaIndex LLM on the same host.

        Args:
            **llm_kwargs: Fields of ``GradientModelAdapterLLM``. ``is_chat_model`` defaults to True, so that
                LlamaIndex uses the prompts that the handler captured.

        Raises:
            EngineError: The adapter was created by this run and is not trained yet.
        """
        from ..llms.gradient import GradientModelAdapterLLM

        run = self._journal.require()
        if run.status == "created":
            raise EngineError(f"adapter {run.job_id} is not trained yet; call finetune() first")
        return GradientModelAdapterLLM(
            model_adapter_id=self.model_adapter_id,
            host=self._api.host,
            access_token=self._api.token,
            workspace_id=self._api.workspace_id,
            **{"is_chat_model": True, **llm_kwargs},
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(model_adapter_id={self.model_adapter_id!r}, host={self._api.host!r})"


def _read_samples(path: Path, max_samples: int | None = None) -> list[dict[str, Any]]:
    """The training samples in the first ``max_samples`` lines of a file, one ``{"inputs": ...}`` a line.

    ``inputs`` is a text, or a list of its parts ``{"value", "trainable", "parseSpecialTokens"}``;
    ``fineTuningParameters`` may hold a multiplier. Raises DatasetError with ``file:line``.
    """
    samples: list[dict[str, Any]] = []
    for line in islice(read_lines(path, torn_from=None), max_samples):
        samples.append(_sample(line))
    if not samples:
        raise DatasetError(f"{path}: no training lines")
    return samples


def _sample(line: Line) -> dict[str, Any]:
    try:
        return gradient_sample(parse_line(line.raw))
    except READ_ERRORS as error:
        raise DatasetError(f"{line.where}: {one_line_reason(error)}") from None
