"""How the next token is drawn."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Sampling", "draw"]


@dataclass(frozen=True)
class Sampling:
    """``temperature`` 0: always the likeliest token. ``top_k`` 0 and ``top_p`` 1: among all tokens.

    ``seed``: the same draws for the same logits; None: torch's own random state.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


def draw(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> int:
    """A token drawn by logits [vocabulary]: of the ``top_k`` likeliest, those that make up ``top_p``."""
    scores = logits.float().cpu() / sampling.temperature
    likeliest, tokens = scores.topk(min(sampling.top_k or len(scores), len(scores)))
    weights = torch.softmax(likeliest, dim=-1)
    before = weights.cumsum(-1) - weights
    weights = weights.masked_fill(before >= sampling.top_p, 0)
    return int(tokens[torch.multinomial(weights, 1, generator=generator)])
