"""Search for a likelier answer where a grammar led greedy decoding astray: best first among the tokens not taken.

A mask leaves the likeliest allowed token, even if the model gives it next to no probability: what came before cannot go
on as the model meant it (https://arxiv.org/abs/2405.21047, grammar-aligned decoding). Answers are therefore compared by
the model's own probability, without the mask. That of a beginning bounds those of all answers with it, so that most are
known not to lead to a likelier one. Without a limit the search is exact: https://arxiv.org/abs/1908.10090.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from typing import NamedTuple

from .token_probability import NotedToken

__all__ = ["AnswerBeginning", "AnswerSearch", "WholeAnswer"]

_LEAST_EXCLUDED = math.log(2)  # chosen: the grammar excluded half of what the model would have written


class WholeAnswer(NamedTuple):
    """An answer that has ended. ``notes``: of its tokens. ``stop``: the stop token; None: it ended by itself."""

    log_probability: float
    tokens: list[int]
    notes: list[NotedToken]
    stop: int | None


class AnswerBeginning(NamedTuple):
    """The first ``length`` of ``tokens``, and a token after them that was not taken. ``notes``: of all."""

    log_probability: float
    tokens: list[int]
    length: int
    token: int
    notes: list[NotedToken]


class AnswerSearch:
    """The likeliest whole answer of one sequence so far, and the beginnings that may lead to a likelier one.

    ``most``: how many beginnings are followed; none where the grammar excluded little of the probability along the
    first answer. ``log_probability``: of the tokens that are being written, without the grammar.
    """

    def __init__(self, most: int) -> None:
        self._left = most
        self._open: list[AnswerBeginning] = []  # the likeliest last; never more than may be followed
        self.best: WholeAnswer | None = None
        self.log_probability = 0.0
        self._excluded = 0.0  # of the first answer: its log-probability with the grammar, less that without

    def take(
        self, own: NotedToken, others: Mapping[int, NotedToken], tokens: list[int], notes: list[NotedToken]
    ) -> None:
        """Note the token that is taken after ``tokens``, whose notes are given, and those that are not."""
        for token, note in others.items():
            log_probability = self.log_probability + note.probability
            is_full = len(self._open) == self._left
            if self._left and not (is_full and log_probability <= self._open[0].log_probability):
                beginning = AnswerBeginning(log_probability, tokens, len(tokens), token, [*notes, note])
                bisect.insort(self._open, beginning, key=lambda each: each.log_probability)
                del self._open[: -self._left]
        self.log_probability += own.probability
        if self.best is None:
            self._excluded += own.allowed - own.probability

    @property
    def is_beaten(self) -> bool:
        """Whether what is being written cannot become a likelier answer than one that is whole."""
        return self.best is not None and self.log_probability <= self.best.log_probability

    def decided(self, written: int) -> int:
        """How many of the tokens ``written`` so far, of the first answer, are in every answer that may be found."""
        return min((beginning.length for beginning in self._open), default=written)

    def end(self, tokens: list[int], notes: list[NotedToken], stop: int | None) -> None:
        """Note that what is being written is a whole answer."""
        if not self.is_beaten:
            self.best = WholeAnswer(self.log_probability, tokens, notes, stop)

    def follow(self) -> AnswerBeginning | None:
        """The likeliest beginning, if it may lead to a likelier answer: it is what is being written from now on."""
        if not self._open or self._excluded < _LEAST_EXCLUDED:
            return None
        beginning = self._open.pop()
        self.log_probability = beginning.log_probability
        self._left -= 1
        self._open = self._open[-self._left :] if self._left else []
        return None if self.is_beaten else beginning
