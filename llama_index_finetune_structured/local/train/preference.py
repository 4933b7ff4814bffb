"""Direct preference optimisation (arXiv:2305.18290): answers that were accepted are made likelier than rejected ones.

The loss of a pair is -log sigmoid(beta * (gain of the accepted answer - gain of the rejected one)), where an answer's
gain is its log-probability less that under the weights that the run began with. Its gradient is that of the weighted
sum of both answers' cross-entropies, with a weight that one pass without gradients gives: so pairs are packed as other
rows are, and a pair need not fit into one forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import softplus

from ..model.devices import widest_float
from ..model.prompts import TokenRow, TrainingRow, token_rows
from .loss import AnswerLoss

__all__ = ["PreferenceLoss", "PreferenceRow", "loss_of"]


@dataclass(frozen=True)
class PreferenceRow:
    """The accepted and the rejected answer to one prompt, as token ids."""

    chosen: TokenRow
    rejected: TokenRow

    @property
    def parts(self) -> tuple[TokenRow, TokenRow]:
        """What the model is asked: both rows."""
        return self.chosen, self.rejected

    @property
    def inputs(self) -> tuple[int, ...]:
        """The model's input for the accepted answer, by which batches are made."""
        return self.chosen.inputs

    def __len__(self) -> int:
        """Tokens of the prompt and of both answers."""
        return len(self.chosen) + len(self.rejected.answer)


@dataclass
class PreferenceLoss(AnswerLoss):
    """The mean loss of pairs. ``beta``: how soon a difference counts as large enough.

    The weights to compare with are those that the model has when the loss is made.
    """

    beta: float = 0.1
    _initial: list[torch.Tensor] = field(default_factory=list, repr=False)
    _gains_from: dict[TrainingRow, float] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Keep a copy of the weights."""
        self._initial = [weight.detach().clone() for weight in self._weights()]

    def weight(self, rows: Sequence[TrainingRow]) -> int:
        """What these pairs count for in a mean over them and others: one each."""
        return len(rows)

    def _backward(self, rows: Sequence[TrainingRow]) -> torch.Tensor:
        device = self._device
        margins = self._margins(rows)
        # The gradient's share of the accepted answer's cross-entropy; of the rejected one's the same, negative.
        shares = self.beta * torch.sigmoid(-margins) / len(rows)
        weights: dict[int, float] = {}
        for row, share in zip(rows, shares.tolist(), strict=True):
            weights |= zip(map(id, row.parts), (share, -share), strict=True)
        for batch, part in self._pieces(token_rows(rows)):
            every = torch.tensor(
                [[weights[id(row)] for row in part for _ in row.answer]], dtype=torch.float64
            )
            loss = self._loss_sum(batch, every.to(device, widest_float(device))).sum()
            (loss * self.scale).backward()  # type: ignore[no-untyped-call]
        return softplus(-margins).mean().to(device, widest_float(device))

    def _mean(self, rows: Sequence[TrainingRow]) -> float:
        return float(softplus(-self._margins(rows)).mean())

    def _margins(self, rows: Sequence[TrainingRow]) -> torch.Tensor:
        """beta times how much more the accepted answers gained than the rejected ones [pairs], fp64 on the CPU."""
        if unknown := [row for row in rows if row not in self._gains_from]:
            with self._as_begun():
                self._gains_from |= zip(unknown, self._differences(unknown), strict=True)
        began = torch.tensor([self._gains_from[row] for row in rows], dtype=torch.float64)
        return self.beta * (torch.tensor(self._differences(rows), dtype=torch.float64) - began)

    @torch.no_grad()
    def _differences(self, rows: Sequence[TrainingRow]) -> list[float]:
        """By how much each accepted answer's log-probability is above that of the rejected one."""
        found: dict[int, float] = {}
        for batch, part in self._pieces(token_rows(rows)):
            lengths = torch.tensor([len(row.answer) for row in part], device=self._device)
            of_row = torch.repeat_interleave(torch.eye(len(part), device=self._device), lengths, dim=1)
            losses = self._loss_sum(batch, of_row).tolist()
            found |= {id(row): loss for row, loss in zip(part, losses, strict=True)}
        losses_of = [[found[id(part)] for part in row.parts] for row in rows]
        return [rejected - chosen for chosen, rejected in losses_of]

    @contextmanager
    def _as_begun(self) -> Iterator[None]:
        """The weights that the run began with, in place of those that it has."""
        weights = self._weights()
        now = [weight.data for weight in weights]
        try:
            for weight, initial in zip(weights, self._initial, strict=True):
                weight.data = initial
            yield
        finally:
            for weight, own in zip(weights, now, strict=True):
                weight.data = own

    def _weights(self) -> list[torch.nn.Parameter]:
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device


def loss_of(rows: Sequence[TrainingRow], model: Any, piece_tokens: int, beta: float) -> AnswerLoss:
    """The loss that is computed of such rows, for ``model`` with the weights that it has."""
    if not (rows and isinstance(rows[0], PreferenceRow)):
        return AnswerLoss.for_model(model, piece_tokens)
    loss = PreferenceLoss.for_model(model, piece_tokens)
    loss.beta = beta
    return loss
