"""Data-parallel training: each process computes its part of every batch, and all take the same step.

Started by ``accelerate launch`` or torchrun; without either, the run has one process. Only LoRA's gradients are
exchanged.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...errors import ConfigurationError
from ..model.devices import best_device, chosen_device

if TYPE_CHECKING:
    import torch

    from ..model.prompts import TrainingRow
    from .loss import AnswerLoss

__all__ = ["DistributedRun"]

# Set by the launchers that accelerate supports: torchrun, Intel MPI, Open MPI, MVAPICH2.
_WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_SHARDED = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}


class DistributedRun:
    """The processes of one training run: ``world_size`` of them, this one is number ``rank``.

    The first one writes the files and shows progress. Raises ConfigurationError under FSDP or DeepSpeed: every
    process holds the whole frozen base.
    """

    def __init__(self) -> None:
        self.world_size, self.rank = 1, 0
        for variable, name in _SHARDED.items():
            if os.environ.get(variable, "").lower() == "true":
                raise ConfigurationError(
                    f"accelerate is configured for {name}, which shards the model; this engine loads the whole frozen "
                    "base in every process and divides the rows: use plain multi-GPU (accelerate launch --multi_gpu)"
                )
        try:
            if any(int(os.environ.get(name) or 1) > 1 for name in _WORLD_SIZES):
                self._join()
        except Exception as error:  # of many kinds: of accelerate, of the network
            found = ", ".join(f"{name}={os.environ[name]}" for name in _WORLD_SIZES if os.environ.get(name))
            raise ConfigurationError(
                f"{found} is set, as for one of several processes, which cannot be joined ({error}): start with "
                "accelerate launch or torchrun, or unset it to train in one process"
            ) from error

    def _join(self) -> None:
        import torch
        from accelerate import PartialState

        try:
            state = PartialState(cpu=not torch.cuda.is_available())  # also selects this process's GPU
        except Exception:
            PartialState._reset_state()  # else a second try fails at the state that the first one left
            raise
        if state.num_processes == 1:
            raise RuntimeError("accelerate was set up for one process before")
        self.world_size, self.rank = state.num_processes, state.process_index

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def device(self, name: str | None) -> str:
        """As ``chosen_device``. Raises ConfigurationError where one of several processes is given a device."""
        if name is not None and self.world_size > 1:
            raise ConfigurationError(
                f"device {name!r}: each of several processes trains on the device that accelerate gives it: leave "
                "device out, and choose GPUs by CUDA_VISIBLE_DEVICES"
            )
        return chosen_device(name)

    def backward(
        self, loss: AnswerLoss, batch: Sequence[TrainingRow], weights: Sequence[torch.nn.Parameter]
    ) -> torch.Tensor:
        """Accumulate the gradient of the whole batch's mean loss in every process.

        Returns that loss, [] in fp64 on the device. A loss or gradient that is not finite in one process is
        finite in none afterwards, so that all of them stop at the same step.
        """
        if self.world_size == 1:
            return loss.backward(batch)
        import torch

        part = self._part(batch)
        share = loss.weight(part) / loss.weight(batch)
        own = (
            loss.backward(part) * share
            if part
            else torch.zeros((), dtype=torch.float64, device=best_device())
        )
        self._add_gradients(weights, share)
        torch.distributed.all_reduce(own)
        return own

    def mean_loss(self, loss: AnswerLoss, rows: Sequence[TrainingRow]) -> float:
        """The mean loss of all rows, each process computing its part."""
        if self.world_size == 1:
            return loss.mean(rows)
        part = self._part(rows)
        return self._sum(loss.mean(part) * loss.weight(part) if part else 0.0) / loss.weight(rows)

    def mean(self, value: float) -> float:
        """The mean of all processes' values; the same in all. Waits for all processes."""
        return value if self.world_size == 1 else self._sum(value) / self.world_size

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true in any process; the same result in all. Waits for all processes."""
        return flag if self.world_size == 1 else self._sum(float(flag)) > 0

    def same(self, value: int) -> bool:
        """Whether all processes have the same value; the same result in all. Waits for all processes."""
        return self.world_size == 1 or not self.any(self._sum(value) != value * self.world_size)

    def barrier(self) -> None:
        """Wait until all processes have come here."""
        if self.world_size > 1:
            self._sum(0.0)

    def _part(self, rows: Sequence[TrainingRow]) -> Sequence[TrainingRow]:
        """This process's rows; none where there are fewer rows than processes."""
        return rows[self.rank :: self.world_size]

    def _sum(self, value: float) -> float:
        """The sum of all processes' values; every process must call it."""
        import torch

        total = torch.tensor(value, dtype=torch.float64, device=best_device())
        torch.distributed.all_reduce(total)
        return float(total)

    def _add_gradients(self, weights: Sequence[torch.nn.Parameter], share: float) -> None:
        """Sum the gradients of each part's mean loss, weighted by the part's share of the trained tokens.

        All gradients travel as one flat tensor: one all-reduce a step instead of one a weight.
        """
        import torch

        gradients = [torch.zeros_like(w) if w.grad is None else w.grad * share for w in weights]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        parts = torch.split(flat, [weight.numel() for weight in weights])
        for weight, gradient in zip(weights, parts, strict=True):
            weight.grad = gradient.view_as(weight).clone()
