"""LoraFinetuneEngine: LoRA fine-tuning on this machine, without a hosted service."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..dataset import FinetuneDataset
from ..dataset.checks.rows import as_source
from ..dataset.checks.targets import local_target
from ..errors import CheckpointError, ConfigurationError, DatasetError, EngineError, MissingDependencyError
from ..example import Example, content_hash
from ..llms.lora import LoraLLM
from ..local.model.adapter import AdapterCard, adapter_base, save_adapter
from ..local.model.base_models import load_tokenizer, resolve
from ..local.model.chat_template import prompt_date
from ..local.model.prompts import prompt_form_of
from ..local.model.reading import seeding
from ..local.train.distributed import DistributedRun
from ..local.train.memory import MemoryPlan, free_memory, model_shape, plan_rows, require_memory
from ..local.train.recipe import GOING_ON_RATE, GOING_ON_START_SHARE, PREFERENCE_RATE
from ..local.train.settings import LoraSettings
from ..local.train.trackers import RunTrackers, require_trackers
from ..locks import locked_folder
from ..progress_bar import progress_bar
from .base import EventSaver, FinetuneEngine
from .lora_card import adapter_card
from .lora_run import LoraJob, LoraRunFolder
from .lora_steps import TrainingStep, last_step, planned
from .preference_data import PreferenceData, rows_of
from .start_adapter import REPLAY_SHARE, StartAdapter

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..local.model.prompts import TrainingRow
    from ..local.train.trainer import Trainer

__all__ = ["LoraFinetuneEngine", "LoraJob"]

_OUTPUT = Path("lora-output")


class LoraFinetuneEngine(FinetuneEngine):
    """Trains LoRA on the answers of ``data``; the adapter is in PEFT's own format.

    The attribute ``fingerprint`` is the content hash of data, base and settings. Needs the extra ``local``.

    Args:
        data: A FinetuneDataset, Examples, or the path of any file that ``check(path)`` accepts.
        base_model: A folder, a ``.gguf`` file or a hub id (``owner/name``). None: that of ``start_from``, else the
            embedded ``smollm2-135m-instruct``.
        validation: Held-out rows, in any form of ``data``; their loss is computed after each epoch, and the weights
            with the lowest are kept.
        output_dir: Folder of the run. None: a folder of ``lora-output`` that is named by ``fingerprint``, so
            that the same run resumes, or returns at once where it is finished.
        config: The training settings. None: the defaults of ``LoraSettings``.
        start_from: Folder of an adapter or a finished run to go on from, in place of untrained LoRA weights; of the
            same base. Its rank, alpha, layers, quantization and thinking are the run's, and where the settings leave
            them open, its form of prompts and half of the recipe's learning rate. Its weights have a share of a tenth
            in those of the new adapter, so that less is lost of what it learned. None: train anew.
        replay: Rows that ``start_from`` was trained on, in any form of ``data``. None: those in its run's folder
            (``train.jsonl``, as ``tune`` and ``improve`` write it), if any.
        replay_share: Share of old rows among the rows that are trained on, from 0 to below 1, as far as there are so
            many: without them what was learned is forgotten. They keep the schemas of their own.
        rejects: Rejected answers to prompts of ``data`` and ``validation``: Examples, or a capture's
            ``*.rejects.jsonl``. Then the answers of ``data`` are trained to be preferred over them (DPO,
            arXiv:2305.18290), rows without one are left out, and nothing is replayed. Best with ``start_from``, an
            adapter that gives such answers. None: train on the answers.

    Raises:
        DatasetError: The data is empty or cannot be read; the text names every such line, as ``check`` does.
        ConfigurationError: There is no such base model; ``start_from`` is no adapter, was trained on another base, or
            has another value of a setting that decides LoRA's shape.
        MissingDependencyError: Reading the base model needs the extra ``local``.
    """

    def __init__(
        self,
        data: FinetuneDataset | str | Path | Iterable[Example],
        *,
        base_model: str | Path | None = None,
        validation: FinetuneDataset | str | Path | Iterable[Example] | None = None,
        output_dir: str | Path | None = None,
        config: LoraSettings | None = None,
        start_from: str | Path | None = None,
        replay: FinetuneDataset | str | Path | Iterable[Example] | None = None,
        replay_share: float = REPLAY_SHARE,
        rejects: str | Path | Iterable[Example] | None = None,
    ) -> None:
        self.base = resolve(base_model or adapter_base(start_from))
        rejected = rejects if rejects is None or isinstance(rejects, str | Path) else tuple(rejects)
        self._data = rows_of(data, rejected)
        self._start = StartAdapter.of(start_from, self.base, replay, replay_share)
        self.config = self._start.settings(config) if self._start else config or LoraSettings()
        if self._start:
            new = list(self._data.examples)
            replayed, other = self._start.old_rows(new, replay_share, self.config.seed)
            self._data.add("replayed rows", replayed)
            if self.config.counterfactuals is not False:
                taught = self._start.rows_of_new_fields(new, [*other, *replayed])
                self._data.add("rows that teach new fields", taught)
        held_out = () if validation is None else as_source(validation)
        self._validation = None if held_out == () else rows_of(held_out, rejected)
        self.examples = self._data.examples
        self.validation = [] if self._validation is None else self._validation.examples
        identity = {
            "data": content_hash([example.id for example in self.examples]),
            "base model": self.base.sha256,
            **self.config.identity,
            "alpha": self.config.lora_alpha,
            **({"start adapter": self._start.sha256} if self._start else {}),
            **self._data.identity,
        }
        self.fingerprint = content_hash(identity)
        self.output_dir = Path(output_dir) if output_dir is not None else _OUTPUT / self.fingerprint[:12]
        self._run = LoraRunFolder(self.output_dir, identity, self.fingerprint)
        self._prompt_date: str | None = None
        if self._start:
            self._form = self._start.form(self.examples, self.config)
        else:
            self._form = prompt_form_of(self.examples, *self.config.prompts)
        self._tokenizer: Any = None
        self._window_size = self._made = 0

    @classmethod
    def from_finetuning_handler(
        cls, finetuning_handler: EventSaver, base_model: str, data_path: str | os.PathLike[str], **kwargs: Any
    ) -> Self:
        """Save what one of this package's handlers captured to ``data_path``, schemas included, and train on it.

        Args:
            finetuning_handler: A handler of this package.
            base_model: As for the constructor.
            data_path: Where the captured Examples are written.
            **kwargs: Other parameters of the constructor.

        Raises:
            ConfigurationError: The handler is one of llama-index-finetuning, which lose the answers' schema.
            DatasetError: The handler captured nothing.
        """
        captured = getattr(finetuning_handler, "path", None)
        if captured is None:
            raise ConfigurationError(
                "expected a handler of this package: those of llama-index-finetuning lose the answers' schema"
            )
        FinetuneDataset.load(captured).save(Path(data_path))
        return cls._from_file(base_model, Path(data_path), **kwargs)

    @classmethod
    def _from_file(cls, base_model: str, data: Path, **options: Any) -> Self:
        return cls(data, base_model=base_model, **options)

    @property
    def adapter(self) -> Path:
        """The folder of the finished adapter."""
        return self._run.adapter

    def finetune(self, on_step: Callable[[TrainingStep], None] = lambda _: None) -> None:
        """Train, with a progress bar, from the newest complete checkpoint if there is one.

        Before the first step of a longer run, a line says the steps, and the time and memory that they will take.

        Ctrl-C finishes the current step, saves and raises KeyboardInterrupt; calling again resumes. A damaged
        checkpoint is passed over, and a damaged adapter is written again, each with a logged warning. Under
        ``accelerate launch`` or torchrun each process computes its part of every batch; the first writes.

        Args:
            on_step: Called with each finished step. Where it raises KeyboardInterrupt, the run ends as by Ctrl-C.

        Raises:
            CheckpointError: The disk is full, or the folder cannot be written.
            EngineError: Another process trains in ``output_dir``; or a loss, gradient or weight is NaN or infinite:
                training stops at that step, and nothing of it is saved. Or the memory does not suffice: by the
                estimate, before the base model is loaded; or in a step, after it was tried again with checkpointed
                layers and half of the rows at a time.
            DatasetError: Rows cannot be trained on, for example because they are longer than ``max_length``; the
                text is that of ``check(data, base_model=...)``.
            ConfigurationError: ``output_dir`` belongs to another run, the base model does not load or has fewer
                layers than ``upper_layers``, the machine has no such ``device``, accelerate is configured for FSDP or
                DeepSpeed, which shard the model, or a tracker of ``report_to`` does not start.
            MissingDependencyError: The extra ``local`` is not installed.
        """
        processes = DistributedRun()
        if processes.any(self._run.is_finished()):
            return
        rows, validation = self._training_rows()
        with self._locked(processes):
            # Another process may have held the lock, and finished.
            if not processes.any(self._run.is_finished()):
                self._train(processes, rows, validation, on_step)

    def _train(
        self,
        processes: DistributedRun,
        rows: Sequence[TrainingRow],
        validation: Sequence[TrainingRow],
        on_step: Callable[[TrainingStep], None],
    ) -> None:
        trainer = self._trainer(rows, self._plan(rows, processes))
        cost = trainer.measure(validation)
        with (
            self._reporting(trainer) as trackers,
            progress_bar(
                total=trainer.total_steps,
                initial=trainer.step,
                desc="LoRA",
                unit="step",
                disable=not processes.is_first,
            ) as bar,
        ):
            if cost is not None and not bar.disable:
                bar.write(planned(trainer, cost), file=bar.fp)

            def show(entry: dict[str, float]) -> None:
                ends_epoch = entry["step"] % trainer.steps_per_epoch == 0
                measuring = ", measuring held-out rows" if validation and ends_epoch else ""
                bar.set_postfix_str(f"loss={entry['loss']:.3f}{measuring}", refresh=bool(measuring))
                bar.update()
                trackers.log(entry, trainer.log.validation)
                on_step(last_step(trainer))

            log = trainer.run(validation, show)
            trackers.log_validation(log.validation)
            bar.set_postfix_str(f"loss={log.steps[-1]['loss']:.3f}")
        if processes.is_first:
            save_adapter(trainer.model, self.adapter, self._card(rows))
            taken = ("epochs", "batch_size", "learning_rate")
            settings = self.config.model_dump() | {name: getattr(trainer, name) for name in taken}
            settings |= {"alpha": self.config.lora_alpha, "piece_tokens": trainer.loss.piece_tokens}
            self._run.write_log(log, settings)  # last: it holds the checksums of the adapter's files
        processes.barrier()  # no process returns before the first has written the adapter

    @contextmanager
    def _reporting(self, trainer: Trainer) -> Iterator[RunTrackers]:
        """The trackers of the settings, in the first process."""
        names = self.config.report_to if trainer.distributed.is_first else ()
        logged = len(trainer.log.validation)
        trackers = RunTrackers(names, self.output_dir, self.config.model_dump(), logged=logged)
        try:
            yield trackers
        finally:
            trackers.finish()

    def get_current_job(self) -> LoraJob:
        """The state of the run, read from its folder. A damaged adapter or checkpoint is a logged warning.

        Raises:
            ConfigurationError: ``output_dir`` holds the adapter of another run.
        """
        if self._run.is_finished():
            figures = self._run.figures()
            return LoraJob(status="succeeded", output_dir=self.output_dir, adapter=self.adapter, **figures)
        resumed = self._run.checkpoint_figures()
        if resumed is None:
            return LoraJob(status="new", output_dir=self.output_dir)
        return LoraJob(status="resumable", output_dir=self.output_dir, **resumed)

    def get_finetuned_model(self, **llm_kwargs: Any) -> LoraLLM:
        """The tuned model as a LlamaIndex LLM that prompts exactly as in training.

        Args:
            **llm_kwargs: Fields of ``LoraLLM``; they override those of training.

        Raises:
            EngineError: Training has not finished, or the adapter is damaged.
            ConfigurationError: ``output_dir`` holds the adapter of another run.
        """
        if not self._run.is_finished():
            raise EngineError(f"{self.output_dir}: no finished adapter; call finetune() first")
        return LoraLLM.from_adapter(self.adapter, **{"base_model": self.base.name, **llm_kwargs})

    def _training_rows(self) -> tuple[Sequence[TrainingRow], Sequence[TrainingRow]]:
        """Training rows and held-out rows. Raises DatasetError for what ``check`` finds wrong with them."""
        self._tokenizer = load_tokenizer(self.base)
        self._prompt_date = self._run.prompt_date(prompt_date(self._tokenizer))
        target = local_target(
            self.base, self._tokenizer, self.config.max_length, date=self._prompt_date, form=self._form
        )
        rows = self._data.trainable(target, self._start.card.schemas if self._start else ())
        windows = self._data.windows(target, self.config.windows, self.config.seed)
        self._window_size = self._data.window_size if windows else 0
        rows += windows
        if self.config.counterfactuals or not (windows or self._start):
            made = self._data.counterfactuals(target, self.config.counterfactuals)
            self._made = len(made)
            rows += made
        if self._validation is None:
            return rows, []
        try:
            return rows, self._validation.trainable(replace(target, reasons=False))
        except DatasetError as error:
            raise DatasetError(f"held-out rows: {error}") from error

    @contextmanager
    def _locked(self, processes: DistributedRun) -> Iterator[None]:
        """Hold the lock of the run's folder: the first process for all of its run, which fail with it."""
        with ExitStack() as stack:
            failure: EngineError | None = None
            if processes.is_first:
                try:
                    stack.enter_context(locked_folder(self.output_dir))
                except EngineError as error:
                    failure = error
            if processes.any(failure is not None):
                raise failure or EngineError(
                    f"{self.output_dir}: the first process could not lock the folder; mend what its own error names, "
                    "and start all processes again"
                )
            yield

    def _plan(self, rows: Sequence[TrainingRow], processes: DistributedRun) -> MemoryPlan | None:
        """How the run fits into the memory; None: unknown. Raises EngineError, in every process, where it does not.

        Before the base model is loaded, which takes minutes; so are the trackers' packages looked for.
        """
        try:
            require_trackers(self.config.report_to)
            device = processes.device(self.config.device)
            shape = model_shape(self.base, self.config.quantization, device)
            free = free_memory(processes.world_size, device)
        except ImportError as error:
            raise MissingDependencyError(error.name or "torch", "local", "LoraFinetuneEngine") from error
        plan = None if shape is None else plan_rows(shape, self.config, rows, free)
        if processes.any(plan is not None and not plan.fits):
            if plan is not None:
                require_memory(plan, self.base.name, device)
            raise EngineError("another process has too little memory, as its own error says")
        return plan

    def _trainer(self, rows: Sequence[TrainingRow], plan: MemoryPlan | None = None) -> Trainer:
        """A trainer at the newest checkpoint."""
        try:
            import torch

            from ..local.model.adapter import add_lora
            from ..local.model.base_models import load_model
            from ..local.model.devices import precision
            from ..local.train.trainer import Trainer
        except ImportError as error:
            raise MissingDependencyError(error.name or "torch", "local", "LoraFinetuneEngine") from error
        with torch.inference_mode(False):  # its tensors could not be trained
            quantization, device = self.config.quantization, self.config.device
            base = load_model(self.base, dtype=precision(device), quantization=quantization, device=device)
            with seeding:  # the random generator is shared by all threads
                torch.manual_seed(self.config.seed)
                model = add_lora(
                    base,
                    rank=self.config.rank,
                    alpha=self.config.lora_alpha,
                    upper_layers=self.config.upper_layers,
                )
            # Checkpoints of prompts with another date are of another run.
            fingerprint = content_hash([self.fingerprint, self._prompt_date])
            try:
                if self._start:
                    self._start.load_into(model)
                trainer = Trainer(
                    model,
                    rows,
                    self.config,
                    self._run.checkpoints,
                    fingerprint=fingerprint,
                    plan=plan,
                    made=self._made,
                    **self._shares,
                )
            except CheckpointError as error:
                raise self._run.another_run(f"{self._run.checkpoints}: holds checkpoints") from error
        if trainer.step == 0:
            self._run.require_own_checkpoints()
        if trainer.distributed.is_first:
            self._run.write_identity(self._prompt_date)
        return trainer

    @property
    def _shares(self) -> dict[str, float]:
        """Shares of the recipe's learning rate and of the start's weights, as ``Trainer`` takes them."""
        if isinstance(self._data, PreferenceData):
            return {"rate_share": PREFERENCE_RATE}
        return {"rate_share": GOING_ON_RATE, "start_share": GOING_ON_START_SHARE} if self._start else {}

    def _card(self, rows: Sequence[TrainingRow]) -> AdapterCard:
        card = adapter_card(
            self.base,
            self._tokenizer,
            self._data,
            [row.parts[0] for row in rows],
            self._form,
            self._prompt_date,
            self._window_size,
            self.config,
            self.fingerprint,
        )
        return self._start.carried(card) if self._start else card
