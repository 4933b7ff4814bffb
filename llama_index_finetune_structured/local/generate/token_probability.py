"""The probability of a token before and after its grammar's mask, and the likeliest tokens at its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from .position_logits import PositionLogits, near_tokens

__all__ = ["ScoredToken", "log_probabilities", "token_scores"]


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
    token: int, scores: PositionLogits, masked: torch.Tensor | None, allows: Callable[[int], bool]
) -> tuple[float, float]:
    """Log-probabilities of a token, among the whole vocabulary and among the allowed tokens.

    ``masked`` [vocabulary], on the CPU: the logits with minus infinity for what the grammar does not allow; None: not
    computed, since the likeliest token is allowed, and ``allows`` tells of others. A token that only the token limit
    made necessary has its probability in the whole vocabulary twice.
    """
    own, near = scores.of(token), scores.near
    unmasked = _log_probability(token, own, near)
    if masked is None:
        return unmasked, _log_probability(token, own, {one: near[one] for one in near if allows(one)})
    if not bool(masked[token].isfinite()):
        return unmasked, unmasked
    return unmasked, _log_probability(token, own, near_tokens(masked))


def _log_probability(token: int, own: float, among: dict[int, float]) -> float:
    """Of a token with its logit among others, which need not hold it."""
    others = [logit for one, logit in among.items() if one != token]
    if not others:
        return 0.0
    scores = torch.tensor([own, *others], dtype=torch.float64)
    return float(scores[0] - scores.logsumexp(0))
