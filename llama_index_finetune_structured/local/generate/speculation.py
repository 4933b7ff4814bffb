"""Guesses at an answer's next tokens: what followed the same words before, in the prompt or in earlier answers.

Prompt lookup (https://github.com/apoorvumang/prompt-lookup-decoding): answers of extraction copy their context,
and answers to one schema repeat its keys. A guess makes a forward wider and never changes an answer. The longer the
words that were found again, the more is guessed: on a CPU a wrong token costs about a seventh of a forward.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["LONGEST", "AnswerMemory", "Continuations"]

LONGEST = 4
_REMEMBERED_TOKENS = 8192


class Continuations:
    """Tokens, and after which one to four of them each came last."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        for token in tokens:
            self.add(token)

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, token: int) -> None:
        at = len(self._tokens)
        for length in range(1, min(LONGEST, at) + 1):
            self._after[tuple(self._tokens[at - length :])] = at
        self._tokens.append(token)

    def guess(self, last: Sequence[int]) -> tuple[int, list[int]]:
        """What came after the longest known end of ``last``: that end's length, and half again as many tokens."""
        for length in range(min(LONGEST, len(last)), 0, -1):
            at = self._after.get(tuple(last[-length:]))
            if at is not None:
                return length, self._tokens[at : at + (3 * length + 1) // 2]
        return 0, []


class AnswerMemory:
    """The latest answers to one schema, forgotten in halves."""

    def __init__(self) -> None:
        self._newer, self._older = Continuations(), Continuations()

    def add(self, answer: Iterable[int]) -> None:
        for token in answer:
            self._newer.add(token)
        if len(self._newer) > _REMEMBERED_TOKENS // 2:
            self._newer, self._older = Continuations(), self._newer

    def guess(self, last: Sequence[int]) -> tuple[int, list[int]]:
        """As :meth:`Continuations.guess`."""
        newer, older = self._newer.guess(last), self._older.guess(last)
        return newer if newer[0] >= older[0] else older
