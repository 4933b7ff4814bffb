"""The training loop: seeded batches, AdamW, checkpoints, exact resume, and a clean stop at Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from transformers import get_cosine_schedule_with_warmup

from ...errors import CheckpointError
from ..model.devices import release_idle_threads
from ..model.prompts import TokenRow
from .batches import batches
from .checkpoints import newest_checkpoint, remove_unfinished, save_checkpoint
from .distributed import DistributedRun
from .fused_linear import fuse_lora
from .loss import AnswerLoss
from .settings import LoraSettings

__all__ = ["Trainer", "TrainingLog"]

_WARMUP_SHARE = 0.05  # of all steps; chosen: a common value
_GRADIENT_NORM = 1.0  # gradients are clipped to this norm; the default of transformers and TRL
_CHECKPOINTS = 10  # about so many a run, where checkpoint_steps is not set


@dataclass
class TrainingLog:
    """``steps``: step, loss, learning rate and seconds of each step. ``validation``: step and held-out loss."""

    steps: list[dict[str, float]] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)


class Trainer:
    """Trains the LoRA weights of a PEFT model on rows, from the newest checkpoint in ``folder``, if any.

    ``fingerprint`` identifies the run. Raises CheckpointError where the checkpoints are of another run.
    """

    def __init__(
        self, model: Any, rows: Sequence[TokenRow], settings: LoraSettings, folder: Path, *, fingerprint: str
    ) -> None:
        self.model, self.rows, self.settings, self.folder = model, rows, settings, folder
        self.fingerprint, self.distributed = fingerprint, DistributedRun()
        fuse_lora(model)
        self.loss = AnswerLoss.for_model(model)
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=settings.learning_rate, weight_decay=0.0)
        self.epochs = settings.epochs_for(len(rows))
        self._batches = list(self._ordered_batches())
        self.total_steps = len(self._batches)
        self.steps_per_epoch = self.total_steps // self.epochs
        self.schedule = get_cosine_schedule_with_warmup(
            self.optimizer, max(1, round(_WARMUP_SHARE * self.total_steps)), self.total_steps
        )
        self.step, self.log = 0, TrainingLog()
        self._resume()

    def run(
        self,
        validation: Sequence[TokenRow] = (),
        on_step: Callable[[dict[str, float]], None] = lambda _: None,
    ) -> TrainingLog:
        """Train the remaining steps. Ctrl-C finishes the step, saves and raises KeyboardInterrupt.

        ``validation``: held-out rows, whose loss is computed after each epoch. ``on_step`` is called with the
        log entry of each step. Raises CheckpointError.
        """
        every = self.settings.checkpoint_steps or max(1, self.total_steps // _CHECKPOINTS)
        with _stop_requests() as stop:
            for batch in self._batches[self.step :]:
                on_step(self._train_step(batch))
                if self.step % self.steps_per_epoch == 0 and validation:
                    loss = self.distributed.mean_loss(self.loss, validation)
                    self.log.validation.append({"step": self.step, "loss": loss})
                stopped = self.distributed.any(stop.is_set())
                if stopped or self.step % every == 0 or self.step == self.total_steps:
                    self._save()
                if stopped and self.step < self.total_steps:
                    raise KeyboardInterrupt(
                        f"stopped after step {self.step} of {self.total_steps}, and saved"
                    )
        release_idle_threads()
        return self.log

    def _ordered_batches(self) -> Iterator[list[TokenRow]]:
        """The batches of all epochs, in an order that depends on rows, seed and epoch only."""
        for epoch in range(self.epochs):
            yield from batches(self.rows, self.settings.batch_size, seed=f"{self.settings.seed}:{epoch}")

    def _train_step(self, batch: list[TokenRow]) -> dict[str, float]:
        """Take one optimizer step; returns its log entry."""
        started = time.perf_counter()
        rate = self.schedule.get_last_lr()[0]
        loss = self.distributed.backward(self.loss, batch, self.weights)
        torch.nn.utils.clip_grad_norm_(self.weights, _GRADIENT_NORM)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        entry = {
            "step": self.step,
            "loss": loss,
            "learning_rate": rate,
            "seconds": time.perf_counter() - started,
        }
        self.log.steps.append(entry)
        return entry

    def _save(self) -> None:
        """Write a checkpoint with everything that the next step depends on."""
        if not self.distributed.is_first:
            return
        tensors = {f"adapter.{name}": t for name, t in _adapter(self.model).items()}
        for n, weight in enumerate(self.weights):
            tensors |= {f"optimizer.{n}.{key}": value for key, value in self.optimizer.state[weight].items()}
        schedule = {key: v for key, v in self.schedule.state_dict().items() if key != "lr_lambdas"}
        state = {
            "fingerprint": self.fingerprint,
            "schedule": schedule,
            "learning_rates": [group["lr"] for group in self.optimizer.param_groups],
            "log": {"steps": self.log.steps, "validation": self.log.validation},
        }
        save_checkpoint(self.folder, self.step, tensors, state)

    def _resume(self) -> None:
        """Restore weights, optimizer, schedule, step and log from the newest checkpoint, if there is one."""
        if self.distributed.is_first:
            for folder in (self.folder, self.folder.parent):
                remove_unfinished(folder)
        newest = newest_checkpoint(self.folder)
        if newest is None:
            return
        tensors, state = newest
        if state["fingerprint"] != self.fingerprint:
            raise CheckpointError(f"{self.folder}: its checkpoints are of another run: choose another folder")
        adapter = {
            key.removeprefix("adapter."): t for key, t in tensors.items() if key.startswith("adapter.")
        }
        set_peft_model_state_dict(self.model, adapter)
        moments: dict[int, dict[str, torch.Tensor]] = {n: {} for n in range(len(self.weights))}
        for key, tensor in tensors.items():
            if key.startswith("optimizer."):
                _, n, name = key.split(".")
                moments[int(n)][name] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        for group, rate in zip(groups, state["learning_rates"], strict=True):
            group["lr"] = rate
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})  # to the weights' device
        self.schedule.load_state_dict(
            {**state["schedule"], "lr_lambdas": [None] * len(self.optimizer.param_groups)}
        )
        self.step, self.log = state["step"], TrainingLog(**state["log"])


def _adapter(model: Any) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return state


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; a second one interrupts at once. Outside the main thread: never set."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = signal.getsignal(signal.SIGINT)

    def request(_number: int, _frame: Any) -> None:
        stop.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, request)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)
