"""Texts that end an answer: found across token boundaries, never shown in part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from .request import GenerationRequest, GenerationResult

__all__ = ["StopTexts"]

_SPARE_TOKENS = 16  # chosen: tokenizers decode a text's first tokens differently, by a space at most


class StopTexts:
    """Texts before which an answer ends; of several, the first that occurs in it."""

    def __init__(self, texts: Sequence[str] = ()) -> None:
        self._texts = tuple(texts)

    @property
    def is_set(self) -> bool:
        """Whether there are any."""
        return bool(self._texts)

    def cut(self, text: str) -> tuple[str, bool]:
        """The text before the first stop text, and whether it has one."""
        ends = [end for stop in self._texts if (end := text.find(stop)) >= 0]
        return (text[: min(ends)], True) if ends else (text, False)

    def applied(self, text: str, result: GenerationResult) -> tuple[str, GenerationResult]:
        """A result's text before the first stop text, and the result, whose reason is ``stop`` if it has one."""
        text, stopped = self.cut(text)
        return text, replace(result, finish_reason="stop") if stopped else result

    def without_start(self, text: str) -> str:
        """The text, which has no stop text, without the end of it that more text may turn into one."""
        longest = max(map(len, self._texts), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._texts):
                return text[:-length]
        return text

    def end(self, request: GenerationRequest, tokenizer: Any) -> None:
        """Let the request's generation end at the first token that completes a stop text."""
        if not self._texts:
            return
        given: Callable[[int], None] | None = request.on_token
        tokens = list[int]()
        # A token has a byte at least, special tokens excepted, which have no text.
        window = max(len(stop.encode()) for stop in self._texts) + _SPARE_TOKENS
        special = set(tokenizer.all_special_ids)

        def watch(token: int) -> None:
            if given is not None:
                given(token)
            if token not in special:
                tokens.append(token)
                del tokens[:-window]
                if self.cut(tokenizer.decode(tokens))[1]:
                    request.cancelled = True

        request.on_token = watch
