"""Draft tokens for speculative decoding, copied from the prompt and from earlier answers.

Prompt lookup (https://github.com/apoorvumang/prompt-lookup-decoding): extracted answers copy their context, and
answers to one schema repeat its keys. Drafts are verified by the model, so they never change an answer; they only
make a forward wider. ``GeneratedSequence.draft`` chooses between these, the tokens that the grammar forces, and the
only continuation of a value that is copied from the prompt. The longer the match, the longer the draft: on a CPU a
wrong draft token costs about a seventh of a forward.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["LONGEST_NGRAM", "AnswerIndex", "NGramIndex"]

LONGEST_NGRAM = 4  # chosen: each length costs one index entry and one lookup a token
_INDEXED_ANSWER_TOKENS = 8192  # chosen: bounds the memory of a schema


class NGramIndex:
    """A token sequence, with an index from its n-grams of 1 to 4 tokens to their latest continuation."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self._tokens: list[int] = []
        self._next_of: dict[tuple[int, ...], int] = {}
        for token in tokens:
            self.add(token)

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, token: int) -> None:
        """Append a token to the sequence."""
        position = len(self._tokens)
        for length in range(1, min(LONGEST_NGRAM, position) + 1):
            self._next_of[tuple(self._tokens[position - length :])] = position
        self._tokens.append(token)

    def draft(self, last: Sequence[int]) -> tuple[int, list[int]]:
        """Draft what follows ``last``: the length of its longest indexed ending, and 1.5 times as many tokens."""
        for length in range(min(LONGEST_NGRAM, len(last)), 0, -1):
            position = self._next_of.get(tuple(last[-length:]))
            if position is not None:
                return length, self._tokens[position : position + (3 * length + 1) // 2]
        return 0, []


class AnswerIndex:
    """N-gram index over the latest answers to one schema, about 8192 tokens; the older half is dropped at once."""

    def __init__(self) -> None:
        self._newer, self._older = NGramIndex(), NGramIndex()

    def add(self, answer: Iterable[int]) -> None:
        """Index an answer's tokens."""
        for token in answer:
            self._newer.add(token)
        if len(self._newer) > _INDEXED_ANSWER_TOKENS // 2:
            self._newer, self._older = NGramIndex(), self._newer

    def draft(self, last: Sequence[int]) -> tuple[int, list[int]]:
        """As ``NGramIndex.draft``."""
        newer, older = self._newer.draft(last), self._older.draft(last)
        return newer if newer[0] >= older[0] else older
