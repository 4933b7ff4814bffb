"""Near-duplicates across a split: validation rows that repeat a train row almost word for word.

Candidates are found by MinHash (Broder 1997) over word shingles with banding (locality-sensitive hashing),
without comparing every pair of rows; their Jaccard similarity is then exact. Equal texts are always found.
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

_SHINGLE_WORDS = 3  # chosen: long enough that shared topic words alone make no two rows alike
_SIMILAR = 0.8
# Rows of Jaccard similarity s share a band, and are compared, with a probability of about 1 - (1 - s**4)**16:
# 99.98% at s = 0.8, 64% at 0.5.
_BANDS, _HASHES_PER_BAND = 16, 4
_SHOWN_CHARACTERS = 100  # of the example that a report quotes
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Leak:
    """A validation row and the train row most similar to it.

    Attributes:
        validation_row: Row of the validation side, from 0.
        train_row: Row of the train side, from 0.
        similarity: Jaccard similarity of question and answer, 0 to 1.
        text: Question and answer of the validation row.
    """

    validation_row: int
    train_row: int
    similarity: float
    text: str


@dataclass(frozen=True)
class LeakageReport:
    """Validation rows that are near-duplicates of train rows.

    Attributes:
        leaks: One entry a near-duplicate, in the order of the validation rows.
        rows: Number of validation rows checked.
    """

    leaks: tuple[Leak, ...]
    rows: int

    @property
    def share(self) -> float:
        """Share of the validation rows that leak, 0 to 1."""
        return len(self.leaks) / self.rows if self.rows else 0.0

    def __str__(self) -> str:
        if not self.leaks:
            return f"no near-duplicates of train among {self.rows} validation rows"
        worst = max(self.leaks, key=lambda leak: leak.similarity)
        return (
            f"{len(self.leaks)} of {self.rows} validation rows ({self.share:.0%}) are near-duplicates of "
            f"train rows, e.g. validation row {worst.validation_row} of train row {worst.train_row} "
            f"({worst.similarity:.0%} similar): {worst.text[:_SHOWN_CHARACTERS]!r}; "
            "split with group_by='document', or drop them"
        )


def find_leaks(train: Sequence[Example], validation: Sequence[Example]) -> LeakageReport:
    """For each validation row the most similar train row, where the similarity is 0.8 or more.

    Question and answer are compared, as sets of three-word shingles without regard to case; retrieved context
    and system prompt are not, since rows share them legitimately.
    """
    train_hashes = [_MinHash(_compared_text(example)) for example in train]
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for row, minhash in enumerate(train_hashes):
        for key in minhash.bands():
            buckets[key].append(row)
    leaks = []
    for row, example in enumerate(validation):
        text = _compared_text(example)
        minhash = _MinHash(text)
        candidates = sorted({other for key in minhash.bands() for other in buckets.get(key, ())})
        if not candidates:
            continue
        similarities = [train_hashes[other].similarity(minhash) for other in candidates]
        best = max(similarities)
        if best >= _SIMILAR:
            leaks.append(Leak(row, candidates[similarities.index(best)], best, text))
    return LeakageReport(tuple(leaks), len(validation))


def _compared_text(example: Example) -> str:
    """Question and answer; of a JSON answer its values, since all rows share the keys."""
    question = example.query
    if question is None:
        question = " ".join(
            m.content for m in example.messages if m.role == "user" and isinstance(m.content, str)
        )
    try:
        answer = " ".join(_values(example.answer_object()))
    except (ValueError, RecursionError):
        answer = " ".join(example.answer_texts())
    return f"{question}\n{answer}"


def _values(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _values(item)
    else:
        yield str(value)


class _MinHash:
    """A text's shingles and their MinHash signature: for each hash function the least hash of all shingles.

    The hash functions are one hash XORed with a different mask each.
    """

    def __init__(self, text: str) -> None:
        words = _WORD.findall(text.casefold())
        starts = range(max(1, len(words) - _SHINGLE_WORDS + 1))  # a shorter text is one shingle
        shingles = {" ".join(words[n : n + _SHINGLE_WORDS]) for n in starts}
        self._shingles = frozenset(map(_hash, shingles))
        hashes = np.fromiter(self._shingles, dtype=np.uint64, count=len(self._shingles))
        self._signature = (hashes[:, None] ^ _MASKS).min(axis=0)  # [hash functions]

    def bands(self) -> Iterator[tuple[int, bytes]]:
        """Bucket keys: two texts are compared if they share one."""
        for band in range(_BANDS):
            start = band * _HASHES_PER_BAND
            yield band, self._signature[start : start + _HASHES_PER_BAND].tobytes()

    def similarity(self, other: _MinHash) -> float:
        """The exact Jaccard similarity of the two sets of shingles."""
        return len(self._shingles & other._shingles) / len(self._shingles | other._shingles)


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


_MASKS = np.array([_hash(f"mask {n}") for n in range(_BANDS * _HASHES_PER_BAND)], dtype=np.uint64)
