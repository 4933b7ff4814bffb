"""The probability of a token before and after its grammar's mask, and the likeliest tokens at its place."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy
import torch

from .position_logits import PositionLogits, near_tokens

__all__ = ["NotedToken", "PositionProbabilities", "ScoredToken", "token_scores"]


class ScoredToken(NamedTuple):
    """A token and its log-probability among the whole vocabulary, and those of the likeliest tokens at its place."""

    token: int
    log_probability: float
    likeliest: tuple[tuple[int, float], ...]


class NotedToken(NamedTuple):
    """What is known of a written token: its log-probabilities, and its scores where the request asks for them."""

    probability: float  # among the whole vocabulary
    allowed: float  # among the allowed tokens
    scores: ScoredToken | None = None


def token_scores(token: int, logits: torch.Tensor, most: int) -> ScoredToken:
    """The scores of a token by logits [vocabulary], before a grammar's mask, and those of the ``most`` likeliest."""
    scores = logits.double().log_softmax(-1)
    values, tokens = scores.topk(min(most, len(scores)))
    return ScoredToken(token, float(scores[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))


class PositionProbabilities:
    """Log-probabilities of tokens at one place, each among the whole vocabulary and among the allowed tokens.

    ``masked`` [vocabulary], on the CPU: the logits with minus infinity for what the grammar does not allow; None: not
    computed, since the likeliest token is allowed, and ``allows`` tells of others.
    """

    def __init__(
        self, scores: PositionLogits, masked: torch.Tensor | None, allows: Callable[[int], bool]
    ) -> None:
        near = scores.near
        self._scores, self._masked, self._near = scores, masked, near
        self._allowed = (
            {one: near[one] for one in near if allows(one)} if masked is None else near_tokens(masked)
        )
        self._sum, self._allowed_sum = _log_sum(near), _log_sum(self._allowed)

    def of(self, token: int) -> tuple[float, float]:
        """Of a token. One that only the token limit made necessary has that in the whole vocabulary twice."""
        own = self._scores.of(token)
        whole = own - (self._sum if token in self._near else numpy.logaddexp(self._sum, own))
        if self._masked is not None and not bool(self._masked[token].isfinite()):
            return float(whole), float(whole)
        among = own - (
            self._allowed_sum if token in self._allowed else numpy.logaddexp(self._allowed_sum, own)
        )
        return float(whole), float(among)

    def beside(self, token: int, most: int) -> dict[int, tuple[float, float]]:
        """Of the ``most`` likeliest other tokens that are allowed; none where the token limit left no choice."""
        if token not in self._allowed:
            return {}
        likeliest = heapq.nlargest(most + 1, self._allowed, key=self._allowed.__getitem__)
        return {one: self.of(one) for one in likeliest if one != token}


def _log_sum(logits: Mapping[int, float]) -> float:
    """Logarithm of the summed exponentials; minus infinity of none."""
    return float(numpy.logaddexp.reduce([*logits.values()])) if logits else float("-inf")
