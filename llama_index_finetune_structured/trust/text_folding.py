"""Texts without differences of case, white space, quotes and dashes."""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["FoldedText"]

_WORD = re.compile(r"\S+")
_ALIKE = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′`´", "'"),
        **dict.fromkeys("“”„‟″«»", '"'),
        **dict.fromkeys("‐‑‒–—−", "-"),
        "\u0130": "i",  # the one character that lower() makes two of
    }
)


def _folded(text: str) -> list[str]:
    """The words, each as long as in the text."""
    return text.translate(_ALIKE).lower().split()


class FoldedText:
    """A text in which values are found in another case, with other white space, quotes or dashes."""

    def __init__(self, text: str) -> None:
        self._text, self._folded = text, " ".join(_folded(text))
        self._starts: list[int] | None = None

    def spans(self, value: str) -> Iterator[tuple[int, int]]:
        """Yield start and end of a value in the text as it was."""
        wanted, at = " ".join(_folded(value)), -1
        while wanted and (at := self._folded.find(wanted, at + 1)) >= 0:
            yield self._offset(at), self._offset(at + len(wanted) - 1) + 1

    def _offset(self, at: int) -> int:
        """Where a character of the folded text, no space, stands in the text."""
        if self._starts is None:
            self._starts = [found.start() for found in _WORD.finditer(self._text)]
        word = self._folded.count(" ", 0, at)
        return self._starts[word] + at - (self._folded.rfind(" ", 0, at) + 1)
