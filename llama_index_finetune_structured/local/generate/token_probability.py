"""The probability of a token before and after its grammar's mask, and the likeliest tokens at its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

__all__ = ["ScoredToken", "log_probabilities", "token_scores"]

# Tokens whose logits are further below the highest do not count: each has less than a thousandth of its probability.
_NEAR = 7.0


class ScoredToken(NamedTuple):
    """A token and its log-probability among the whole vocabulary, and those of the likeliest tokens at its place."""

    token: int
    log_probability: float
    likeliest: tuple[tuple[int, float], ...]


def token_scores(token: int, logits: torch.Tensor, most: int) -> ScoredToken:
    """The scores of a token by logits [vocabulary], before a grammar's mask, and those of the ``most`` likeliest."""
    scores = logits.double().log_softmax(-1)
    values, tokens = scores.topk(min(most, len(scores)))
    return ScoredToken(token, float(scores[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))


def log_probabilities(
    token: int, logits: torch.Tensor, masked: torch.Tensor | None, allows: Callable[[int], bool]
) -> tuple[float, float]:
    """Log-probabilities of a token, among the whole vocabulary and among the allowed tokens.

    ``logits`` and ``masked`` [vocabulary]: as the model gave them, and with minus infinity for what the grammar does
    not allow; ``masked`` None: not computed, since the likeliest token is allowed, and ``allows`` tells of others.
    A token that only the token limit made necessary has its probability in the whole vocabulary twice.
    """
    near = _near(logits)
    unmasked = _log_probability(token, logits, near)
    if masked is None:
        return unmasked, _log_probability(token, logits, [one for one in near if allows(one)])
    if not bool(masked[token].isfinite()):
        return unmasked, unmasked
    return unmasked, _log_probability(token, masked, _near(masked))


def _near(logits: torch.Tensor) -> list[int]:
    tokens: list[int] = (logits > logits.max() - _NEAR).nonzero()[:, 0].tolist()
    return tokens


def _log_probability(token: int, logits: torch.Tensor, among: list[int]) -> float:
    """Of a token among others, which need not hold it."""
    others = [one for one in among if one != token]
    if not others:
        return 0.0
    scores = logits[[token, *others]].double()
    return float(scores[0] - scores.logsumexp(0))
