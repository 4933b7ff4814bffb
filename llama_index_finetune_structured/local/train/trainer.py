"""The training loop: seeded batches, AdamW, checkpoints, exact resume, and a stop at Ctrl-C or at NaN."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import get_cosine_schedule_with_warmup

from ...errors import CheckpointError, EngineError
from ...files import remove_leftovers
from ...printable import package_logger
from ..model.devices import devices_of, peak_memory, release_idle_threads
from ..model.finite import not_finite
from ..model.lora_weights import copied_lora, load_lora, lora_weights, move_to_start
from ..model.prompts import TrainingRow
from .batches import batches
from .checkpoints import newest_checkpoint, part_of, save_checkpoint
from .distributed import DistributedRun
from .fused_linear import fuse_lora
from .gradient_scale import GradientScale
from .layer_checkpointing import checkpoint_layers
from .liger import use_liger
from .memory import MemoryPlan, gib, mend
from .out_of_memory import is_out_of_memory, release_memory
from .preference import loss_of
from .recipe import learning_rate_of, rows_a_step
from .settings import LoraSettings
from .stop_requests import stop_requests

__all__ = ["RunCost", "Trainer", "TrainingLog"]

_logger = package_logger(__name__)
_WARMUP_SHARE = 0.05  # of all steps; chosen: a common value
_GRADIENT_NORM = 1.0  # gradients are clipped to this norm; the default of transformers and TRL
_CHECKPOINTS = 10  # about so many a run, where checkpoint_steps is not set
_PATIENCE = 2  # chosen: epochs in a row without a lower held-out loss after which a run ends
_FORWARD_SHARE = 0.4  # of a step's time; chosen: the backward pass takes about twice that of the forward pass
_MEASURED_STEPS = 20  # chosen: two gradients are computed to estimate what a run of more steps takes
_STATE_KEYS = {
    "step",
    "fingerprint",
    "schedule",
    "learning_rates",
    "log",
    "total_steps",
    "kept",
    "piece_tokens",
    "scale",
}
_MOMENTS = {"step", "exp_avg", "exp_avg_sq"}  # AdamW's state of a weight


@dataclass
class TrainingLog:
    """``steps``: step, loss, learning rate and seconds of each step. ``validation``: step and held-out loss."""

    steps: list[dict[str, float]] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class RunCost:
    """``seconds`` of all steps, as two of them took; ``memory`` in bytes, the most so far; None where unknown."""

    seconds: float
    memory: int | None


class Trainer:
    """Trains the LoRA weights of a PEFT model on rows, from the newest checkpoint in ``folder``, if any.

    With held-out rows the weights of the epoch with the lowest loss on them are kept, and unless the settings name
    the epochs, two in a row without a lower one end the run. ``fingerprint`` identifies the run. ``plan``: how it
    fits into the memory; None: as the settings say. ``made``: how many rows are counterfactuals. ``rate_share``: of
    the recipe's learning rate. ``start_share``: of the weights that training began with, in those that the model has
    in the end. Raises CheckpointError where the checkpoints are of another run.
    """

    def __init__(
        self,
        model: Any,
        rows: Sequence[TrainingRow],
        settings: LoraSettings,
        folder: Path,
        *,
        fingerprint: str,
        plan: MemoryPlan | None = None,
        made: int = 0,
        rate_share: float = 1.0,
        start_share: float = 0.0,
    ) -> None:
        self.model, self.rows, self.settings, self.folder = model, rows, settings, folder
        self.fingerprint, self.distributed, self.plan = fingerprint, DistributedRun(), plan
        fuse_lora(model)
        self.loss = loss_of(rows, model, plan.piece_tokens if plan else settings.piece_tokens, settings.beta)
        if (plan.checkpoint_layers if plan else settings.checkpoint_layers) and not checkpoint_layers(model):
            _logger.warning("The base model's layers cannot be checkpointed")
        use_liger(model, partial(self.loss.mean, rows[:1]))
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.batch_size = settings.batch_size or rows_a_step(rows)
        self.devices = [str(device) for device in devices_of(model)]
        width = model.get_input_embeddings().weight.shape[1]
        self.learning_rate = settings.learning_rate or rate_share * learning_rate_of(width, self.batch_size)
        # One kernel for all weights; on a CPU sums would round otherwise than they did.
        fused = {weight.device.type for weight in self.weights} == {"cuda"} or None
        self.optimizer = torch.optim.AdamW(self.weights, lr=self.learning_rate, weight_decay=0.0, fused=fused)
        self.scale = GradientScale.for_weights(model.parameters())
        self.epochs = settings.epochs_for(len(rows) - made, made)
        self._batches = list(self._ordered_batches())
        self.steps_per_epoch = len(self._batches) // self.epochs
        self.step, self.log = 0, TrainingLog()
        self._saved = 0  # step of the newest checkpoint, 0 for none
        self._kept: dict[str, torch.Tensor] = {}  # the weights at the lowest held-out loss
        self._start, self._start_share = copied_lora(model) if start_share else {}, start_share
        self._plan(len(self._batches))
        self._resume()

    def _plan(self, steps: int) -> None:
        """Set the number of steps, and the learning rate of each."""
        self.total_steps = steps
        for group in self.optimizer.param_groups:
            group["initial_lr"] = group["lr"] = self.learning_rate
        warmup = max(1, round(_WARMUP_SHARE * steps))
        # The first rate is 0, as in TRL. The only step of a run takes the second, for else it would teach nothing.
        first = 0 if steps == 1 else -1
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, warmup, steps, last_epoch=first)

    def measure(self, validation: Sequence[TrainingRow] = ()) -> RunCost | None:
        """What the run will take, by the gradients of its longest batch and of a middle one; no step is taken.

        Where ``minutes`` is set and all steps would take longer, plans those that fit. None, and nothing is measured,
        for a short run and one that resumes. ``validation``: as of ``run``.
        """
        limit = self.settings.minutes
        if self.step or (self.total_steps < _MEASURED_STEPS and limit is None):
            return None
        by_length = sorted(self._batches[: self.steps_per_epoch], key=lambda batch: sum(map(len, batch)))
        with torch.inference_mode(False), torch.enable_grad(), self._telling_memory():
            self.distributed.backward(self.loss, by_length[-1], self.weights)
            self.optimizer.zero_grad(set_to_none=True)
            started = time.perf_counter()
            self.distributed.backward(self.loss, by_length[len(by_length) // 2], self.weights)
            seconds = self.distributed.mean(time.perf_counter() - started)
        self.optimizer.zero_grad(set_to_none=True)
        seconds *= 1 + _FORWARD_SHARE * len(validation) / len(self.rows)
        if limit is not None and 60 * limit < seconds * self.total_steps:
            self._plan(max(1, int(60 * limit / seconds)))
        return RunCost(seconds * self.total_steps, peak_memory(*self.devices))

    def run(
        self,
        validation: Sequence[TrainingRow] = (),
        on_step: Callable[[dict[str, float]], None] = lambda _: None,
    ) -> TrainingLog:
        """Train the remaining steps. Ctrl-C finishes the step, saves and raises KeyboardInterrupt.

        ``validation``: held-out rows, whose loss is computed after each epoch; in the end the model has the weights
        with the lowest. ``on_step`` is called with the log entry of each step; KeyboardInterrupt from it counts as
        Ctrl-C. Raises CheckpointError, or EngineError where a loss, gradient or weight is not finite (in every process
        at the same step, before anything of that step is saved), or where memory runs out, also with smaller pieces
        and checkpointed layers.
        """
        every = self.settings.checkpoint_steps or max(1, self.total_steps // _CHECKPOINTS)
        # A caller may have switched gradients off.
        with (
            stop_requests() as stop,
            torch.inference_mode(False),
            torch.enable_grad(),
            self._telling_memory(),
        ):
            while not self._is_over():
                batch = self._batches[self.step]
                entry = self._train_step(batch)
                try:
                    on_step(entry)
                except KeyboardInterrupt:
                    stop.set()
                is_last = self.step == self.total_steps
                if validation and (is_last or self.step % self.steps_per_epoch == 0):
                    self._validate(validation)
                elif is_last:  # no later step would show that this one diverged
                    self._require_finite_loss(batch, "the loss after the step")
                stopped = self.distributed.any(stop.is_set())
                if stopped or self.step % every == 0 or self._is_over():
                    self._save()
                if stopped and not self._is_over():
                    raise KeyboardInterrupt(
                        f"stopped after step {self.step} of {self.total_steps}, and saved"
                    )
        if self._kept:
            load_lora(self.model, self._kept)
        if self._start:
            move_to_start(self.model, self._start, self._start_share)
        release_idle_threads()
        return self.log

    def _is_over(self) -> bool:
        losses = [entry["loss"] for entry in self.log.validation]
        worse = len(losses) - 1 - losses.index(min(losses)) if losses else 0
        return self.step >= self.total_steps or (self.settings.epochs is None and worse >= _PATIENCE)

    def _ordered_batches(self) -> Iterator[list[TrainingRow]]:
        """The batches of all epochs, in an order that depends on rows, seed and epoch only."""
        for epoch in range(self.epochs):
            yield from batches(self.rows, self.batch_size, seed=f"{self.settings.seed}:{epoch}")

    def _train_step(self, batch: Sequence[TrainingRow]) -> dict[str, float]:
        """Take one optimizer step; returns its log entry. Raises EngineError where loss or gradient is not finite."""
        started = time.perf_counter()
        rate = self.schedule.get_last_lr()[0]
        loss, gradient = self._gradient(batch)
        while math.isfinite(loss) and not math.isfinite(gradient) and self.scale.lower():
            self.optimizer.zero_grad(set_to_none=True)
            loss, gradient = self._gradient(batch)
        if not (math.isfinite(loss) and math.isfinite(gradient)):
            figure = (
                f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {gradient}"
            )
            raise self._diverged(self.step + 1, figure, self._places(batch))
        self.optimizer.step()
        self.schedule.step()
        self.scale.step()
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

    def _gradient(self, batch: Sequence[TrainingRow]) -> tuple[float, float]:
        """Compute the gradient of a batch's mean loss, clipped; returns that loss and the gradient's norm before."""
        self.loss.scale = self.scale.value
        total = self.distributed.backward(self.loss, batch, self.weights)
        self.scale.undo(self.weights)
        norm = torch.nn.utils.clip_grad_norm_(self.weights, _GRADIENT_NORM)
        loss, gradient = torch.stack([total, norm.to(total)]).tolist()  # the one read from the device
        return loss, gradient

    def _validate(self, rows: Sequence[TrainingRow]) -> None:
        """Append the held-out loss to the log, and keep the weights where it is the lowest. Raises EngineError."""
        loss = self._require_finite_loss(rows, "the loss of the held-out rows")
        if all(loss < entry["loss"] for entry in self.log.validation):
            self._kept = copied_lora(self.model)
        self.log.validation.append({"step": self.step, "loss": loss})

    def _require_finite_loss(self, rows: Sequence[TrainingRow], figure: str) -> float:
        loss = self.distributed.mean_loss(self.loss, rows)
        if not math.isfinite(loss):
            raise self._diverged(self.step, f"{figure} is {loss}", "")
        return loss

    def _diverged(self, step: int, figure: str, places: str) -> EngineError:
        """The error for a figure that is not finite. Computes nothing that other processes must take part in."""
        if weights := not_finite(lora_weights(self.model).items()):
            figure += f", and so is the trained weight {weights[0]}"
        saved = self._saved
        kept = (
            f"The checkpoint of step {saved} is kept, and is finite"
            if saved
            else "No checkpoint was saved yet"
        )
        return EngineError(
            f"step {step} of {self.total_steps}: {figure}; training stopped.{places} {kept}: lower learning_rate "
            f"({self.learning_rate:g}) and train again, in another folder; if that does not help, take out "
            "the rows named, or use another base model"
        )

    @contextmanager
    def _telling_memory(self) -> Iterator[None]:
        """Raise EngineError with figures where the device is out of memory."""
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            release_memory(error)
            raise EngineError(self._memory_failure()) from error

    def _memory_failure(self) -> str:
        used = "" if (peak := peak_memory(*self.devices)) is None else f", of which {gib(peak)} were in use"
        estimate = "" if self.plan is None else f"; the estimate: {self.plan.summary}"
        kept = f". The checkpoint of step {self._saved} is kept" if self._saved else ""
        return (
            f"step {self.step + 1} of {self.total_steps}: the memory of {' and '.join(self.devices)} does not suffice"
            f"{used}, with checkpointed layers and at most {self.loss.piece_tokens} tokens in one forward pass"
            f"{estimate}{kept}: {mend(checkpointed=True)}"
        )

    def _places(self, batch: Sequence[TrainingRow]) -> str:
        """Where the rows of a batch stand in the data, and which of them have a loss that is not finite."""
        numbers = {id(row): number for number, row in enumerate(self.rows, 1)}
        places = sorted(((numbers[id(row)], row) for row in batch), key=lambda place: place[0])
        bad = [number for number, row in places if not math.isfinite(self.loss.mean([row]))]
        text = f" Its batch has the rows {_listed([number for number, _ in places])} of the data"
        return f"{text}; by itself, the loss is not finite in {_listed(bad)}." if bad else f"{text}."

    def _save(self) -> None:
        """Write a checkpoint for the next step. Raises EngineError in all processes where a tensor is not finite."""
        tensors = self._tensors()
        names = not_finite(tensors.items())
        if self.distributed.any(bool(names)):
            raise self._diverged(self.step, f"{names[0] if names else 'a weight'} is not finite", "")
        self._saved = self.step
        if not self.distributed.is_first:
            return
        schedule = {key: v for key, v in self.schedule.state_dict().items() if key != "lr_lambdas"}
        state = {
            "fingerprint": self.fingerprint,
            "schedule": schedule,
            "learning_rates": [group["lr"] for group in self.optimizer.param_groups],
            "log": {"steps": self.log.steps, "validation": self.log.validation},
            "total_steps": self.total_steps,
            "kept": bool(self._kept),
            "piece_tokens": self.loss.piece_tokens,
            "scale": self.scale.state,
        }
        save_checkpoint(self.folder, self.step, tensors, state)

    def _tensors(self) -> dict[str, torch.Tensor]:
        """The trained weights and the optimizer's state, by the names that they have in a checkpoint."""
        tensors = {f"adapter.{name}": t for name, t in lora_weights(self.model).items()}
        tensors |= {f"kept.{name}": weight for name, weight in self._kept.items()}
        for n, weight in enumerate(self.weights):
            tensors |= {f"optimizer.{n}.{key}": value for key, value in self.optimizer.state[weight].items()}
        return tensors

    def _resume(self) -> None:
        """Restore weights, optimizer, schedule, step and log from the newest whole checkpoint, if there is one.

        Raises CheckpointError where it is of another run, EngineError where processes found different ones.
        """
        if self.distributed.is_first:
            for folder in (self.folder, self.folder.parent):
                remove_leftovers(folder)
        newest = newest_checkpoint(self.folder, self._why_unusable)
        if not self.distributed.same(newest[1]["step"] if newest else 0):
            raise EngineError(f"{self.folder}: not every process reads the same checkpoints: check its disk")
        if newest is None:
            return
        tensors, state = newest
        if state["fingerprint"] != self.fingerprint:
            raise CheckpointError(f"{self.folder}: its checkpoints are of another run: choose another folder")
        load_lora(self.model, part_of(tensors, "adapter."))
        self._kept = part_of(tensors, "kept.")
        self.loss.piece_tokens = min(self.loss.piece_tokens, state["piece_tokens"])
        self._plan(state["total_steps"])
        self.scale.state = state["scale"]
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
        self.step = self._saved = state["step"]
        self.log = TrainingLog(**state["log"])

    def _why_unusable(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> str | None:
        """Why this run cannot go on from a whole checkpoint; None where it can, or where it is of another run."""
        if state.get("fingerprint") != self.fingerprint:
            return None if "fingerprint" in state else "its state has no fingerprint"
        if missing := sorted(_STATE_KEYS - state.keys()):
            return f"its state has no {', '.join(missing)}"
        parts = ("adapter.", "kept.") if state["kept"] else ("adapter.",)
        shapes = {f"{part}{name}": t.shape for part in parts for name, t in lora_weights(self.model).items()}
        for n, weight in enumerate(self.weights):
            if any(f"optimizer.{n}.{name}" in tensors for name in _MOMENTS):  # else it never had a gradient
                shapes |= {
                    f"optimizer.{n}.{name}": torch.Size() if name == "step" else weight.shape
                    for name in _MOMENTS
                }
        found = {name: tensor.shape for name, tensor in tensors.items()}
        wrong = sorted(name for name in shapes.keys() | found if shapes.get(name) != found.get(name))
        return f"its tensor {wrong[0]} is missing, unknown or of another shape" if wrong else None


def _listed(numbers: Sequence[int]) -> str:
    """Numbers for a text: at most ten."""
    more = f" and {len(numbers) - 10} more" if len(numbers) > 10 else ""
    return ", ".join(map(str, numbers[:10])) + more
