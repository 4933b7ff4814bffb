"""How two values of one field are compared: typed, each rule a similarity from 0 to 1."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from pydantic import TypeAdapter, ValidationError

from ...errors import ConfigurationError
from ...example import canonical_json

if TYPE_CHECKING:
    from llama_index.core.base.embeddings.base import BaseEmbedding

__all__ = ["Comparison", "FieldRule", "as_rule", "embedding_similarity", "normal_text", "token_f1"]

Comparison = Literal["exact", "casefold", "number", "date", "token_f1", "ignore"]
_COMPARISONS = ("exact", "casefold", "number", "date", "token_f1", "ignore")
_DATE: TypeAdapter[date | datetime] = TypeAdapter(date | datetime)


@dataclass(frozen=True)
class FieldRule:
    """How a field is compared with gold.

    ``compare``: "exact" (text after Unicode NFC and whitespace collapsed; anything else by JSON equality),
    "casefold" (the same, ignoring case), "number" (within ``tolerance``, relative, and an absolute 1e-9),
    "date" (the same moment or day), "token_f1" (free text: F1 of its lower-case words), "ignore" (left
    out), or a function (gold, answer) -> similarity from 0 to 1.
    A value counts as correct from similarity ``correct_from`` on (0: measured, never held against it).
    """

    compare: Comparison | Callable[[Any, Any], float] = "exact"
    tolerance: float = 1e-9
    correct_from: float = 1.0

    def similarity(self, gold: Any, answer: Any) -> float:
        """From 0 to 1; both values are present."""
        if callable(self.compare):
            return min(1.0, max(0.0, float(self.compare(gold, answer))))
        if self.compare == "token_f1":
            return token_f1(_plain(gold), _plain(answer))
        if self.compare == "number" and _is_number(gold) and _is_number(answer):
            return float(math.isclose(gold, answer, rel_tol=self.tolerance, abs_tol=1e-9))
        if self.compare == "date":
            return float(_same(_moment(gold), _moment(answer), fold=False))
        fold = self.compare == "casefold"
        return float(_same(gold, answer, fold))

    def is_correct(self, similarity: float) -> bool:
        """Whether this similarity counts as right; 1e-9 forgives rounding."""
        return similarity >= self.correct_from - 1e-9


def as_rule(given: FieldRule | Comparison | Callable[[Any, Any], float]) -> FieldRule:
    """A rule from a rule, a comparison's name or a function; raises ConfigurationError."""
    rule = given if isinstance(given, FieldRule) else FieldRule(compare=given)
    if not callable(rule.compare) and rule.compare not in _COMPARISONS:
        raise ConfigurationError(f"unknown comparison {rule.compare!r}: use one of {', '.join(_COMPARISONS)}")
    return rule


@lru_cache(maxsize=8192)
def normal_text(text: str) -> str:
    """Unicode NFC, every run of whitespace one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def token_f1(gold: str, answer: str) -> float:
    """F1 of the two texts' words as multisets: runs of letters and digits, ignoring case."""
    gold_words, answer_words = Counter(_words(gold)), Counter(_words(answer))
    total = gold_words.total() + answer_words.total()
    return 2 * (gold_words & answer_words).total() / total if total else 1.0


def embedding_similarity(embed_model: BaseEmbedding) -> Callable[[Any, Any], float]:
    """A comparison of free texts by the similarity of their embeddings; each text is embedded once."""
    embedded = lru_cache(maxsize=4096)(embed_model.get_text_embedding)

    def similar(gold: Any, answer: Any) -> float:
        return float(embed_model.similarity(embedded(_plain(gold)), embedded(_plain(answer))))

    return similar


def _words(text: str) -> list[str]:
    folded = unicodedata.normalize("NFC", text).casefold()
    return "".join(c if c.isalnum() else " " for c in folded).split()


def _same(gold: Any, answer: Any, fold: bool) -> bool:
    """JSON equality: numbers by value, texts normalised, True is not 1, lists in order."""
    if isinstance(gold, str) and isinstance(answer, str):
        gold, answer = normal_text(gold), normal_text(answer)
        return bool(gold.casefold() == answer.casefold() if fold else gold == answer)
    if isinstance(gold, list) and isinstance(answer, list):
        pairs = zip(gold, answer, strict=False)
        return len(gold) == len(answer) and all(_same(g, a, fold) for g, a in pairs)
    if isinstance(gold, dict) and isinstance(answer, dict):
        return gold.keys() == answer.keys() and all(_same(gold[k], answer[k], fold) for k in gold)
    return isinstance(gold, bool) == isinstance(answer, bool) and bool(gold == answer)


def _moment(value: Any) -> Any:
    try:
        return _DATE.validate_python(value)
    except ValidationError:
        return value


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else canonical_json(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
