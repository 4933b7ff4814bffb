"""The part of a prompt that holds the text: what differs from one training prompt to the next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

from pydantic import BaseModel, ConfigDict

__all__ = ["TextFrame", "possible_frames"]

_STEM = 12  # chosen: prompts with the same first, or last, so many characters are of one template
_LEAST_PART = 4  # chosen: characters of a constant part; texts share shorter ones by chance
_MOST_LINES, _MOST_ROWS = 200, 200  # chosen: lines and prompts that a template's parts are looked for in
_MOST_PARTS = 6  # chosen: templates have two or three; each pair of parts is a frame to try


class TextFrame(BaseModel):
    """Where a prompt's text stands in the last user message: constant parts around it, empty where there are none.

    Attributes:
        start: Every message begins with it.
        lead: The text begins right after its first occurrence. Empty: right after ``start``.
        tail: The text ends right before its last occurrence. Empty: right before ``end``.
        end: Every message ends with it, spaces after it aside.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: str = ""
    lead: str = ""
    tail: str = ""
    end: str = ""

    def split(self, message_text: str) -> tuple[str, str, str] | None:
        """What stands before the text, the text, and what follows it; None for a message of another form.

        Args:
            message_text: The content of the message.
        """
        bare = message_text.rstrip()
        if not (bare.startswith(self.start) and bare.endswith(self.end)):
            return None
        first, last = len(self.start), len(bare) - len(self.end)
        if self.lead:
            found = bare.find(self.lead, first)
            first = len(bare) + 1 if found < 0 else found + len(self.lead)
        if self.tail:
            last = bare.rfind(self.tail, first, last)
        if last < first:
            return None
        return message_text[:first], message_text[first:last], message_text[last:]


def possible_frames(messages: Sequence[str]) -> list[TextFrame]:
    """The frames that a text may stand in, narrow ones first; the last is the whole of what differs.

    A template's constant parts are the start and the end of all messages, and lines between. Where most messages share
    their first or last characters, the others are of other templates, and do not count.
    """
    texts = _of_one_template([message.rstrip() for message in messages])
    texts = list(dict.fromkeys(texts))[:_MOST_ROWS]
    if not texts:
        return []
    start = _constant(_shared_start(texts), texts)
    rest = [text[len(start) :] for text in texts]
    backwards = [text[::-1] for text in rest]
    end = _constant(_shared_start(backwards), backwards)[::-1]
    parts = list(islice(_constant_lines([text[: len(text) - len(end)] for text in rest]), _MOST_PARTS))
    borders = len(parts) + 1
    ranges = sorted(
        ((first, last) for first in range(borders) for last in range(first, borders)),
        key=lambda pair: pair[1] - pair[0],
    )
    return [
        TextFrame(
            start=start,
            lead=parts[first - 1] if first else "",
            tail=parts[last] if last < len(parts) else "",
            end=end,
        )
        for first, last in ranges
    ]


def _of_one_template(texts: list[str]) -> list[str]:
    for stem in (slice(_STEM), slice(-_STEM, None)):
        shared, count = Counter(text[stem] for text in texts).most_common(1)[0] if texts else ("", 0)
        if 2 * count >= len(texts):
            texts = [text for text in texts if text[stem] == shared]
    return texts


def _shared_start(texts: Sequence[str]) -> str:
    low, high = min(texts), max(texts)
    differing = (n for n, (one, two) in enumerate(zip(low, high, strict=False)) if one != two)
    return low[: next(differing, len(low))]


def _constant(shared: str, texts: Sequence[str]) -> str:
    """A part that texts begin with, without a word that it cuts; empty where texts may share it by chance."""
    cut = len(shared)
    while cut and shared[cut - 1].isalnum() and any(text[cut : cut + 1].isalnum() for text in texts):
        cut -= 1
    part = shared[:cut]
    return part if len(part.strip()) >= _LEAST_PART else ""


def _constant_lines(texts: Sequence[str]) -> Iterator[str]:
    """The longest parts that begin with a line break and stand in all texts, in order."""
    places = [0] * len(texts)
    pattern = min(texts, key=len)
    at = pattern.find("\n")
    for _ in range(_MOST_LINES):
        if at < 0:
            return
        part = _longest_shared(pattern[at:], texts, places)
        if part:
            places = [text.index(part, place) + len(part) for text, place in zip(texts, places, strict=True)]
            yield part
        at = pattern.find("\n", at + max(1, len(part)))


def _longest_shared(text: str, texts: Sequence[str], places: Sequence[int]) -> str:
    """The longest start of a text that the others hold after their places."""

    def is_shared(size: int) -> bool:
        return all(text[:size] in other[place:] for other, place in zip(texts, places, strict=True))

    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if is_shared(middle) else (low, middle - 1)
    rests = [
        other[other.index(text[:low], place) + low :] for other, place in zip(texts, places, strict=True)
    ]
    return _constant(text[:low], [text[:low] + rest for rest in rests])
