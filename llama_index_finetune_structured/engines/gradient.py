"""Fine-tuning over Gradient's protocol: an adapter is created once, then trained batch by batch."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential
from tqdm import tqdm

from ..errors import ConfigurationError, EngineError, ServiceError
from ..example import content_hash
from ..llms.gradient_api import connect_gradient
from .base import Data, FinetuneEngine, path_or_dataset, training_path
from .gradient_samples import read_samples
from .hosted.journal import Journal, Run, list_runs, run_folder, runs_root
from .timeouts import Timeouts

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..llms.gradient import GradientModelAdapterLLM

__all__ = ["GradientFinetuneEngine"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
_TRIES = 6


class GradientFinetuneEngine(FinetuneEngine):
    """Fine-tune a model behind Gradient's protocol. Each finetune() is one epoch over the data.

    Give ``base_model_slug`` and ``name`` for a new adapter, or ``model_adapter_id`` to go on with one.
    ``max_steps`` is how many lines of the file are used, ``batch_size`` how many go into one request.
    An epoch that was cut off goes on after its last accepted batch, also in a new process: the same slug
    and name then find the unfinished adapter again. Needs ``host`` (or GRADIENT_API_URL): the hosted
    service is retired.
    """

    def __init__(
        self,
        *,
        base_model_slug: str | None = None,
        name: str | None = None,
        data_path: Data,
        verbose: bool = False,
        max_steps: int | None = None,
        batch_size: int = 1,
        model_adapter_id: str | None = None,
        host: str | None = None,
        access_token: str | None = None,
        workspace_id: str | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        if (model_adapter_id is None) == (base_model_slug is None or name is None):
            raise ConfigurationError("give either base_model_slug and name, or model_adapter_id")
        if batch_size < 1 or (max_steps is not None and max_steps < 1):
            raise ConfigurationError(f"batch_size {batch_size}, max_steps {max_steps}: expected 1 or more")
        self._timeouts = timeouts or Timeouts()
        self._api = connect_gradient(host, access_token, workspace_id, self._timeouts.request_s)
        self._data = data_path
        self._verbose = verbose
        self._max_steps = max_steps
        self._batch_size = batch_size
        if model_adapter_id is not None:
            self._journal = self._attach(model_adapter_id)
        else:
            self._journal = self._create(str(base_model_slug), str(name))

    @classmethod
    def _from_file(cls, base_model: str, data: Path, **options: Any) -> Self:
        return cls(base_model_slug=base_model, data_path=data, **options)

    @property
    def model_adapter_id(self) -> str:
        """The adapter's id, there from construction on."""
        return str(self._journal.require().job_id)

    @property
    def run_dir(self) -> Path:
        """The folder with this adapter's journal."""
        return self._journal.folder

    # -- the adapter --

    def _attach(self, adapter_id: str) -> Journal:
        adapter = self._retried(lambda: self._api.adapter(adapter_id))
        known = [folder for folder, run in list_runs() if run.job_id == adapter_id]
        journal = Journal(known[0] if known else runs_root() / adapter_id)
        if journal.read() is None:
            run = self._new_run(str(adapter.base_model_id))
            journal.write(run.but(phase="submitted", job_id=adapter_id, status="attached"))
        return journal

    def _create(self, slug: str, name: str) -> Journal:
        identity = content_hash([self._api.host, self._api.workspace_id, slug, name])
        first = run_folder(name, identity)
        with Journal(first).lock():
            mine = [(folder, run) for folder, run in list_runs() if run.key == identity]
            for folder, run in mine:
                if run.job_id is not None and self._is_unfinished(run):
                    logger.info("going on with the unfinished adapter %s", run.job_id)
                    return Journal(folder)
            base_id = self._retried(lambda: self._api.base_model_id(slug))
            asked = [(folder, run) for folder, run in mine if run.job_id is None]
            if asked:
                journal, run = Journal(asked[0][0]), asked[0][1]
            else:
                journal = Journal(first if not mine else first.with_name(f"{first.name}-{len(mine) + 1}"))
                there = tuple(self._named(base_id, name))
                run = self._new_run(slug).but(phase="submitting", key=identity, known_job_ids=there)
                journal.write(run)
            adapter_id = self._retried(lambda: self._find_or_create(run, base_id, name))
            journal.write(run.but(phase="submitted", job_id=adapter_id, status="created"))
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

    def _is_unfinished(self, run: Run) -> bool:
        begun = run.progress.get("epochs", 0) == 0 or run.progress.get("accepted", 0) != 0
        if not begun and run.progress.get("before") is None:
            return False
        try:
            self._retried(lambda: self._api.adapter(str(run.job_id)))
        except ServiceError as error:
            if not error.refused:
                raise
            return False
        return True

    def _named(self, base_id: str, name: str) -> list[str]:
        adapters = self._retried(self._api.adapters)
        return [str(a.id) for a in adapters if a.name == name and a.base_model_id == base_id]

    def _find_or_create(self, run: Run, base_id: str, name: str) -> str:
        """The adapter that a lost request of this run made, else a new one."""
        made = [found for found in self._named(base_id, name) if found not in run.known_job_ids]
        return made[0] if made else self._api.create_adapter(base_id, name)

    # -- training --

    def finetune(self) -> None:
        """Train one epoch, or the rest of one that was cut off. Raises EngineError naming the lines that
        were refused, DatasetError with ``file:line`` for lines that are no samples."""
        path = training_path(
            path_or_dataset(self._data), self._journal.folder, name="train", format="gradient"
        )
        samples = read_samples(path, self._max_steps)
        size = self._batch_size
        batches = [samples[start : start + size] for start in range(0, len(samples), size)]
        with self._journal.lock():
            progress = self._begin(path, content_hash([samples, size]))
            with tqdm(
                total=len(batches), initial=progress["accepted"], desc="gradient", disable=self._hidden()
            ) as bar:
                for number in range(progress["accepted"], len(batches)):
                    loss = self._train(batches[number], number)
                    bar.set_postfix_str("" if loss is None else f"loss {loss:.3f}")
                    bar.update()
            self._write(epochs=progress["epochs"] + 1, accepted=0, before=None)

    def _hidden(self) -> bool | None:
        return False if self._verbose else None

    def _begin(self, path: Path, data_hash: str) -> dict[str, Any]:
        run = self._journal.require()
        progress: dict[str, Any] = {"epochs": 0, "accepted": 0, "before": None} | run.progress
        if run.data_hash != data_hash:
            if progress["accepted"]:
                logger.warning("%s has changed since its epoch was cut off: starting the epoch again", path)
            progress |= {"accepted": 0, "before": None}
        changes = {"data_hash": data_hash, "data_path": str(path), "status": "training"}
        self._journal.write(run.but(progress=progress, **changes))
        return progress

    def _write(self, **progress: Any) -> None:
        run = self._journal.require()
        status = "trained" if progress.get("accepted") == 0 else "training"
        self._journal.write(run.but(progress={**run.progress, **progress}, status=status))

    def _train(self, batch: list[dict[str, Any]], number: int) -> float | None:
        """Train one batch exactly once; None where its loss was lost with the reply.

        The adapter's update time, written down before the request, tells whether a request whose reply
        never came (or whose process died) was accepted.
        """
        asked_before = self._journal.require().progress.get("before")
        before = str(asked_before) if asked_before else self._updated_at()
        if asked_before and self._updated_at() != before:
            self._write(accepted=number + 1, before=None)
            return None
        self._write(before=before)
        tuned = self._tuned(batch, number, before)
        self._write(accepted=number + 1, before=None)
        if tuned is None or not tuned.number_of_trainable_tokens:
            return None
        return float(tuned.sum_loss) / float(tuned.number_of_trainable_tokens)

    def _tuned(self, batch: list[dict[str, Any]], number: int, before: str) -> Any:
        sent = 0

        def once() -> Any:
            nonlocal sent
            if sent and self._updated_at() != before:
                return None
            sent += 1
            return self._api.fine_tune(self.model_adapter_id, batch)

        try:
            return self._retried(once)
        except ServiceError as error:
            if error.refused:
                self._write(before=None)
            first = number * self._batch_size + 1
            raise EngineError(
                f"samples {first} to {first + len(batch) - 1}: {error}. Call finetune() again to go on after "
                "the last accepted batch"
            ) from error

    def _updated_at(self) -> str:
        adapter = self._retried(lambda: self._api.adapter(self.model_adapter_id))
        return str(adapter.latest_update_time.isoformat())

    def _retried(self, request: Callable[[], T]) -> T:
        return Retrying(
            sleep=self._timeouts.clock.sleep,
            stop=stop_after_attempt(_TRIES),
            wait=wait_exponential(multiplier=1, max=60),
            retry=retry_if_exception(lambda e: isinstance(e, ServiceError) and not e.refused),
            reraise=True,
        )(request)

    # -- the result --

    def get_current_job(self) -> Run:
        """The run as journalled; ``progress`` holds the epochs done and the batches accepted in this one."""
        return self._journal.require()

    def get_finetuned_model(self, **llm_kwargs: Any) -> GradientModelAdapterLLM:
        """The adapter as a LlamaIndex LLM on the same host; raises EngineError before any training.

        ``is_chat_model`` is True unless given: so LlamaIndex picks the prompts that the handler wrote down.
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
