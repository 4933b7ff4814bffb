"""The processes of one training run: started by ``accelerate launch`` or torchrun, or this one alone.

Data-parallel: each process takes its part of every batch, only LoRA's gradients travel, and all take the same step.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...errors import ConfigurationError

if TYPE_CHECKING:
    import torch

    from .loss import AnswerLoss
    from .packing import Row

__all__ = ["Ranks"]

_COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_SHARDED = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}


class Ranks:
    """This process among those that train together. The first writes the files and shows progress.

    Raises ConfigurationError under FSDP or DeepSpeed: every process holds the whole frozen base.
    """

    def __init__(self) -> None:
        self.count, self.index = 1, 0
        for variable, name in _SHARDED.items():
            if os.environ.get(variable, "").lower() == "true":
                raise ConfigurationError(
                    f"accelerate is configured for {name}, which shards the model; this engine gives every process the "
                    "whole frozen base and shares out the rows: choose plain multi-GPU (accelerate launch --multi_gpu)"
                )
        if any(int(os.environ.get(name) or 1) > 1 for name in _COUNTS):
            self._join()

    def _join(self) -> None:
        import torch
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available())  # also picks this process's GPU
        self.count, self.index = state.num_processes, state.process_index

    @property
    def is_first(self) -> bool:
        return self.index == 0

    def backward(
        self, loss: AnswerLoss, batch: Sequence[Row], weights: Sequence[torch.nn.Parameter]
    ) -> float:
        """Accumulate the gradient of the whole batch's mean loss in every process; returns that loss."""
        if self.count == 1:
            return loss.backward(batch)
        part = self._part(batch)
        share = _trained_tokens(part) / _trained_tokens(batch)
        own = loss.backward(part) if part else 0.0
        self._add_gradients(weights, share)
        return self._sum(own * share)

    def mean(self, loss: AnswerLoss, rows: Sequence[Row]) -> float:
        """The mean loss of all rows, each process computing its part."""
        if self.count == 1:
            return loss.mean(rows)
        part = self._part(rows)
        return self._sum(loss.mean(part) * _trained_tokens(part) if part else 0.0) / _trained_tokens(rows)

    def any(self, said: bool) -> bool:
        """Whether any process says so; all get the same answer, and none goes on before all have come here."""
        return said if self.count == 1 else self._sum(float(said)) > 0

    def _part(self, rows: Sequence[Row]) -> Sequence[Row]:
        return rows[self.index :: self.count]

    def _sum(self, value: float) -> float:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        total = torch.tensor(value, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(total)
        return float(total)

    def _add_gradients(self, weights: Sequence[torch.nn.Parameter], share: float) -> None:
        """Gradients of each part's mean loss, weighted by its share of the trained tokens, added up."""
        import torch

        gradients = [torch.zeros_like(w) if w.grad is None else w.grad * share for w in weights]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        parts = torch.split(flat, [weight.numel() for weight in weights])
        for weight, gradient in zip(weights, parts, strict=True):
            weight.grad = gradient.view_as(weight).clone()


def _trained_tokens(rows: Sequence[Row]) -> int:
    return sum(len(row.answer) for row in rows)
