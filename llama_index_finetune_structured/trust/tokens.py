"""Tokens of an answer with their probabilities."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate
from typing import NamedTuple

__all__ = ["AnswerToken", "TokenPlaces"]


class AnswerToken(NamedTuple):
    """One token of an answer.

    ``text``: its bytes in UTF-8, none for a stop token. ``unmasked``: log-probability among all tokens of the
    vocabulary. ``allowed``: among those that the grammar allowed; the same where there was no grammar.
    """

    text: bytes
    unmasked: float
    allowed: float


class TokenPlaces:
    """Where the characters of an answer's text stand in the bytes of its tokens."""

    def __init__(self, text: str, token_texts: list[bytes]) -> None:
        """Raises ValueError where the tokens are not those of the text, white space around it excepted."""
        written = b"".join(token_texts)
        skipped = len(written) - len(written.lstrip())
        if not written.startswith(text.encode(), skipped):
            raise ValueError("the tokens are not those of the text")
        self._ends = list(accumulate(map(len, token_texts)))
        sizes = (len(character.encode()) for character in text)
        self._bytes = None if text.isascii() else list(accumulate(sizes, initial=0))
        self._skipped = skipped

    def between(self, start: int, stop: int) -> slice:
        """The tokens that hold a byte of the characters from ``start`` to ``stop``."""
        if stop <= start:
            return slice(0)
        first = bisect_right(self._ends, self._byte(start))
        return slice(first, bisect_left(self._ends, self._byte(stop)) + 1)

    def _byte(self, character: int) -> int:
        return self._skipped + (character if self._bytes is None else self._bytes[character])
