"""One answer that is being written: what it has said, what may come next, what is guessed to come."""

from __future__ import annotations

from collections.abc import Set

import torch

from .request import Answer, Request
from .sampling import draw
from .speculation import LONGEST, Continuations

__all__ = ["Row"]


class Row:
    """The state of one request. ``length``: tokens of it that the model has read."""

    def __init__(self, request: Request, stop_ids: Set[int]) -> None:
        self.request, self._stop_ids = request, stop_ids
        self.tokens: list[int] = []
        self.length = 0
        self.ended = False
        self._stop: int | None = None
        self._run = None if request.grammar is None else request.grammar.start(request.max_new_tokens)
        self._said = Continuations(request.prompt) if request.sampling.is_greedy else None
        seed = request.sampling.seed
        self._random = None if seed is None else torch.Generator().manual_seed(seed)

    def draft(self) -> list[int]:
        """Tokens that may well come after the last; none where tokens are drawn at random."""
        if self._said is None:
            return []
        last = [*self.request.prompt[-LONGEST:], *self.tokens[-LONGEST:]][-LONGEST:]
        length, tokens = self._said.guess(last)
        if self.request.grammar is not None:
            seen, remembered = self.request.grammar.memory.guess(last)
            tokens = remembered if seen > length else tokens
        if self._run is not None:
            tokens = max(self._run.allowed_start(tokens), self._run.forced(), key=len)
        return tokens[: self.request.max_new_tokens - len(self.tokens) - 1]

    def choose(self, logits: torch.Tensor, likeliest: int) -> int:
        """The next token, by logits [vocabulary]: the likeliest that the grammar allows, or one drawn."""
        if not self.request.sampling.is_greedy:
            return draw(self._masked(logits), self.request.sampling, self._random)
        if self._run is None or self._run.allows(likeliest):
            return likeliest
        return int(self._masked(logits).argmax())

    def take(self, token: int) -> None:
        """Add a token to the answer, which may end by it."""
        if self._run is not None:
            self._run.take(token)
        if token in self._stop_ids:
            self._stop = token
        else:
            self.tokens.append(token)
            if self._said is not None:
                self._said.add(token)
            if self.request.on_token is not None:
                self.request.on_token(token)
        if (
            self._stop is not None
            or self.request.cancelled
            or len(self.tokens) >= self.request.max_new_tokens
        ):
            self._finish()

    def fail(self, error: BaseException) -> None:
        """End with an error."""
        self.ended = True
        if not self.request.answer.done():
            self.request.answer.set_exception(error)

    def _finish(self) -> None:
        self.ended = True
        if self.request.grammar is not None and self._stop is not None:
            self.request.grammar.memory.add([*self.request.prompt[-LONGEST:], *self.tokens, self._stop])
        if not self.request.answer.done():
            reason = "length" if self._stop is None else "stop"
            self.request.answer.set_result(Answer(tuple(self.tokens), reason))

    def _masked(self, logits: torch.Tensor) -> torch.Tensor:
        if self._run is None:
            return logits
        return logits.masked_fill(~self._run.mask().to(logits.device), float("-inf"))
