"""Reasoning before an answer during generation: free text that ends at a mark, at the latest at a limit."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any, NamedTuple

import torch

from ..model.control_tokens import control_tokens
from ..model.reasoning import reasoning_marks, without_mark
from .grammar import GrammarCache

__all__ = ["ReasoningLimit", "ReasoningRules", "ReasoningState"]

_Step = tuple[
    bytes, tuple[int, ...] | None
]  # end of the text, and what is left of the closing once it has begun


class ReasoningRules:
    """How reasoning is written with one tokenizer: in any tokens but control tokens, until the mark that ends it.

    ``opening``: tokens between prompt and reasoning. ``closing``: those between reasoning and answer. ``mark``: the
    text that ends the reasoning; ``mark_id``: the control token that it is, None: it is text. ``stop_ids``: tokens that
    end an answer. Raises as ``LocalModel.reasoning``.
    """

    def __init__(self, tokenizer: Any, cache: GrammarCache, stop_ids: Set[int]) -> None:
        self._tokenizer, self._cache, marks = tokenizer, cache, reasoning_marks(tokenizer)
        self.mark, self.mark_id = marks.mark, marks.mark_id(tokenizer)
        self.opening, self.closing = marks.ids(tokenizer, marks.opening), marks.ids(tokenizer, marks.closing)
        self._mark = self.mark.encode()
        self._white = marks.closing.lstrip()[len(self.mark) :].encode()
        excluded = control_tokens(tokenizer).keys() | stop_ids
        texts = [
            b"" if token in excluded else cache.written([token])
            for token in range(min(cache.vocabulary, len(tokenizer)))
        ]
        self._texts = [*texts, *[b""] * (cache.vocabulary - len(texts))]
        self.mask = torch.tensor([self.after(b"", token) is not None for token in range(cache.vocabulary)])
        self.closers = [token for token, text in enumerate(texts) if self._mark[-1:] in text]

    def after(self, text: bytes, token: int) -> _Step | None:
        """The end of the text after a token, and what is left of the closing if the token ends it; None: refused.

        ``text``: the end of the text before the token.
        """
        if token == self.mark_id:
            return b"", self.closing[self.closing.index(token) + 1 :]
        if not self._texts[token]:
            return None
        text += self._texts[token]
        _, ended, after = text.partition(self._mark)
        if not ended:
            return text[max(0, len(text) - len(self._mark) + 1) :], None
        if self.mark_id is not None or not self._white.startswith(after):
            return None
        return b"", self._rest(self._white[len(after) :])

    def _rest(self, white: bytes) -> tuple[int, ...]:
        """The white space before the answer as tokens, in training's own way where it has one that ends so."""
        for begin in range(len(self.closing), -1, -1):
            if self._cache.written(self.closing[begin:]) == white:
                return self.closing[begin:]
        return tuple(self._cache.engine.tokenize_bytes(white))

    def is_open(self, text: bytes) -> bool:
        """Whether a text ends with the start of the mark."""
        return any(text.endswith(self._mark[:length]) for length in range(1, len(self._mark)))

    def text(self, tokens: Sequence[int]) -> str:
        """The reasoning that tokens are."""
        return without_mark(str(self._tokenizer.decode(list(tokens), skip_special_tokens=True)), self.mark)


class ReasoningLimit(NamedTuple):
    """Reasoning before an answer: how it is written, and its most tokens, without those of the mark that ends it."""

    rules: ReasoningRules
    tokens: int


class ReasoningState:
    """State of the reasoning before one answer; it stands in the place of ``GrammarState`` until it has ended."""

    def __init__(self, limit: ReasoningLimit) -> None:
        self._rules, self._left = limit.rules, limit.tokens
        self._text = b""  # its end
        self._closing: tuple[int, ...] | None = limit.rules.closing if limit.tokens <= 0 else None

    @property
    def has_ended(self) -> bool:
        """Whether the answer comes next."""
        return self._closing == ()

    @property
    def is_complete(self) -> bool:
        """Whether the answer may end here: it has not begun."""
        return False

    def append(self, token: int) -> None:
        """Advance by a token, which must be allowed."""
        if self._closing is not None:
            self._closing = self._closing[1:]
            return
        self._left -= 1
        step = self._rules.after(self._text, token)
        assert step is not None  # it is allowed
        self._text, self._closing = step
        if self._closing is None and self._left <= 0:
            self._closing = self._rules.closing

    def allows(self, token: int) -> bool:
        """Whether a token may come next."""
        if self._closing is not None:
            return token == self._closing[0]
        return self._rules.after(self._text, token) is not None

    def within_limit(self, token: int) -> int:
        """``token``, which is allowed: the limit has its effect on what is allowed."""
        return token

    def allowed_start(self, tokens: Sequence[int]) -> list[int]:
        """The longest start of ``tokens`` that is allowed; with all of the closing where it begins it."""
        text, closing = self._text, self._closing
        start: list[int] = []
        for token in tokens[: self._left]:
            if closing is not None or (step := self._rules.after(text, token)) is None:
                break
            text, closing = step
            start.append(token)
        return [*start, *(closing or ())]

    def forced(self) -> list[int]:
        """Tokens that must come next."""
        return list(self._closing or ())

    def copied(self) -> list[int]:
        """None: nothing is copied."""
        return []

    def mask(self) -> torch.Tensor:
        """Which tokens may come next: booleans [vocabulary]."""
        rules = self._rules
        if self._closing is not None:
            only = torch.zeros_like(rules.mask)
            only[self._closing[0]] = True
            return only
        if not rules.is_open(self._text):
            return rules.mask
        allowed = rules.mask.clone()
        allowed[[token for token in rules.closers if not self.allows(token)]] = False
        return allowed
