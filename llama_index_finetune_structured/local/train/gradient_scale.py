"""Scaling of the loss for fp16, whose smallest numbers are larger than many gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

__all__ = ["GradientScale"]

_FIRST = 2.0**16  # as PyTorch's GradScaler
_SMALLEST = 2.0**-14  # chosen: where a gradient overflows with less, a scale is not the reason
_PATIENCE = 200  # chosen: steps without overflow after which the scale is doubled; PyTorch's 2,000 are a whole run here


@dataclass
class GradientScale:
    """What the loss is multiplied by before the backward pass, and gradients are divided by after it.

    A step whose gradient overflows is computed again with half the scale, so that no step is left out. Powers of two,
    which change no digit of a gradient. ``value`` 1 without ``used``.
    """

    used: bool
    value: float = 1.0
    steps: int = 0

    @classmethod
    def for_weights(cls, weights: Iterable[torch.Tensor]) -> GradientScale:
        """Used where any of a model's weights are fp16."""
        used = any(weight.dtype == torch.float16 for weight in weights)
        return cls(used, _FIRST if used else 1.0)

    @property
    def state(self) -> list[float]:
        """For a checkpoint, so that a resumed run computes as an uninterrupted one."""
        return [self.value, self.steps]

    @state.setter
    def state(self, state: Sequence[float]) -> None:
        self.value, self.steps = float(state[0]), int(state[1])

    def undo(self, weights: Sequence[torch.nn.Parameter]) -> None:
        """Divide the gradients by the scale."""
        if self.used:
            torch._foreach_mul_([w.grad for w in weights if w.grad is not None], 1 / self.value)

    def lower(self) -> bool:
        """Halve the scale after an overflow; False where that is of no use."""
        if not self.used or self.value <= _SMALLEST:
            return False
        self.value, self.steps = self.value / 2, 0
        return True

    def step(self) -> None:
        """Count a step without overflow."""
        self.steps += 1
        if self.used and self.steps >= _PATIENCE:
            self.value, self.steps = 2 * self.value, 0
