"""The logits of positions of an answer, with what choosing tokens needs in one transfer from the device for a step."""

from __future__ import annotations

from functools import cached_property

import torch

__all__ = ["NO_TOKEN", "PositionLogits", "likeliest_tokens", "near_tokens", "position_logits"]

NO_TOKEN = -1
"""In place of the likeliest token where its logit is not finite."""
# Tokens whose logits are further below the highest do not count: each has less than a thousandth of its probability.
_NEAR = 7.0
_MOST_NEAR = (
    32  # chosen: where a model is sure, far fewer are near; where it is not, all logits are transferred
)


class PositionLogits:
    """Logits [vocabulary] after one token, which may be on a device.

    ``likeliest``: as of ``likeliest_tokens``. ``near``: logits of the tokens that count beside it, by token.
    """

    def __init__(self, logits: torch.Tensor, likeliest: int, near: dict[int, float] | None = None) -> None:
        self._logits, self.likeliest = logits, likeliest
        if near is not None:
            self.near = near

    @cached_property
    def logits(self) -> torch.Tensor:
        """All of them, on the CPU."""
        return self._logits.cpu()

    @cached_property
    def near(self) -> dict[int, float]:
        """From all logits, where they were not transferred with those of the step."""
        return near_tokens(self.logits)

    def of(self, token: int) -> float:
        """A token's logit."""
        return self.near[token] if token in self.near else float(self.logits[token])


def near_tokens(logits: torch.Tensor) -> dict[int, float]:
    """The tokens that count by logits [vocabulary] on the CPU, in the order of the vocabulary."""
    tokens = (logits > logits.max() - _NEAR).nonzero()[:, 0]
    return dict(zip(tokens.tolist(), logits[tokens].tolist(), strict=True))


def position_logits(logits: torch.Tensor, *, near: bool) -> list[PositionLogits]:
    """Each row of logits [tokens, vocabulary] on its own, with one transfer from their device.

    ``near``: whether the probabilities of tokens will be asked for.
    """
    likeliest = likeliest_tokens(logits)
    if logits.device.type == "cpu" or not near:
        return [PositionLogits(row, token) for row, token in zip(logits, likeliest.tolist(), strict=True)]
    values, tokens = logits.topk(min(_MOST_NEAR, logits.shape[-1]))
    # In fp32, which has all token ids and values of lower precision: MPS has no fp64.
    columns = torch.cat([likeliest[:, None].float(), tokens.float(), values.float()], dim=1).tolist()
    return [_transferred(row, *column) for row, column in zip(logits, columns, strict=True)]


def _transferred(logits: torch.Tensor, likeliest: float, *columns: float) -> PositionLogits:
    half = len(columns) // 2
    values = columns[half:]
    near = {
        int(token): value for token, value in zip(columns, values, strict=False) if value > values[0] - _NEAR
    }
    every = len(near) < half or half == len(logits)
    return PositionLogits(logits, int(likeliest), dict(sorted(near.items())) if every else None)


def likeliest_tokens(logits: torch.Tensor) -> torch.Tensor:
    """Index of the largest of logits [..., vocabulary]; -1 where that is NaN, infinite or minus infinity.

    NaN counts as the largest. The indices carry the check, so that it needs no read from the device of its own.
    """
    index = logits.argmax(-1, keepdim=True)
    return torch.where(logits.gather(-1, index).isfinite(), index, NO_TOKEN)[..., 0]
