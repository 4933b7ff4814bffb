"""Near-duplicate text across a split: a validation row that train has almost word for word proves nothing.

MinHash (Broder 1997) over runs of words, in bands: an estimate of the Jaccard similarity, found without
comparing every row with every other. Exact for equal texts.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..example import Example

__all__ = ["Leak", "LeakageReport", "find_leaks"]

_RUN = 3
_BANDS, _ROWS = 16, 4
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Leak:
    """A validation row and the train row it resembles; ``similarity`` of question and answer, 0 to 1."""

    validation_row: int
    train_row: int
    similarity: float
    text: str


@dataclass(frozen=True)
class LeakageReport:
    """Validation rows whose question and answer stand nearly so in train; ``rows`` were looked at."""

    leaks: tuple[Leak, ...]
    rows: int

    @property
    def share(self) -> float:
        """Leaking share of the validation rows."""
        return len(self.leaks) / self.rows if self.rows else 0.0

    def __str__(self) -> str:
        if not self.leaks:
            return f"no near-duplicates of train among {self.rows} validation rows"
        worst = max(self.leaks, key=lambda leak: leak.similarity)
        return (
            f"{len(self.leaks)} of {self.rows} validation rows ({self.share:.0%}) stand nearly so in "
            f"train, e.g. validation row {worst.validation_row} and train row {worst.train_row} "
            f"({worst.similarity:.0%} alike): {worst.text[:100]!r}; "
            "split with group_by='document', or drop them"
        )


def find_leaks(
    train: Sequence[Example], validation: Sequence[Example], *, threshold: float = 0.8
) -> LeakageReport:
    """The most alike train row of each validation row, where alike by ``threshold`` or more.

    Compared are question and answer in lower case, runs of three words; not the retrieved context nor the
    system prompt, which rows share rightly.
    """
    signatures = [_Signature(_said(example)) for example in train]
    shelves: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for row, signature in enumerate(signatures):
        for key in signature.bands():
            shelves[key].append(row)
    leaks = []
    for row, example in enumerate(validation):
        signature = _Signature(_said(example))
        near = {other for key in signature.bands() for other in shelves.get(key, ())}
        best = max(((signatures[o].likeness(signature), -o) for o in near), default=(0.0, 0))
        if best[0] >= threshold:
            leaks.append(Leak(row, -best[1], best[0], _said(example)))
    return LeakageReport(tuple(leaks), len(validation))


def _said(example: Example) -> str:
    """Question and answer; of a JSON answer its values, since all rows share the keys."""
    asked = example.query
    if asked is None:
        asked = " ".join(
            m.content for m in example.messages if m.role == "user" and isinstance(m.content, str)
        )
    try:
        answer = " ".join(_values(example.answer_object()))
    except ValueError:
        answer = example.answer_text()
    return f"{asked}\n{answer}"


def _values(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _values(item)
    else:
        yield str(value)


class _Signature:
    """MinHash of a text: for each of the permutations the least hash of its runs."""

    def __init__(self, text: str) -> None:
        words = _WORD.findall(text.casefold())
        runs = {" ".join(words[n : n + _RUN]) for n in range(max(1, len(words) - _RUN + 1))}
        self.runs = frozenset(_hash(run) for run in runs)
        hashes = np.fromiter(self.runs, dtype=np.uint64, count=len(self.runs))
        self.least = (hashes[:, None] ^ _MASKS).min(axis=0)

    def bands(self) -> Iterator[tuple[int, bytes]]:
        for band in range(_BANDS):
            yield band, self.least[band * _ROWS : (band + 1) * _ROWS].tobytes()

    def likeness(self, other: _Signature) -> float:
        return len(self.runs & other.runs) / len(self.runs | other.runs)


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


_MASKS = np.array([_hash(f"mask {n}") for n in range(_BANDS * _ROWS)], dtype=np.uint64)
