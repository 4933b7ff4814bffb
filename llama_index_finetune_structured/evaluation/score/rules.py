"""Field rules: how two values of one field are compared, each rule a similarity from 0 to 1."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import TypeAdapter, ValidationError

from ...errors import ConfigurationError
from ...example import canonical_json
from ...json_schema import is_number

if TYPE_CHECKING:
    from llama_index.core.base.embeddings.base import BaseEmbedding

__all__ = ["Comparison", "FieldRule", "Rules", "as_rule", "embedding_similarity", "normal_text", "token_f1"]

Comparison = Literal["exact", "casefold", "number", "date", "token_f1", "ignore"]
_COMPARISONS = get_args(Comparison)
_ROUNDING = 1e-9
"""Absolute difference of two numbers that are equal but for rounding (chosen: far above that of a double)."""
_TEXTS, _EMBEDDINGS = 8192, 4096
"""Texts kept normalised or embedded (chosen: some thousand rows; an embedding takes some kB)."""
_DECIMAL_TEXT = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?")
"""A number as JSON writes it; not a text such as 007, which may be a name."""
_DATE: TypeAdapter[date | datetime] = TypeAdapter(date | datetime)


@dataclass(frozen=True)
class FieldRule:
    """How a field of an answer is compared with gold.

    Attributes:
        compare: "exact" (text after Unicode NFC and whitespace collapsed; anything else by JSON equality),
            "casefold" (the same, ignoring case), "number" (within ``tolerance``, or an absolute 1e-9; a decimal in
            text, as Pydantic writes it, by its exact value unless there is a ``tolerance``),
            "date" (the same moment or day), "token_f1" (free text: F1 of its lower-case words), "ignore"
            (left out), or a function (gold, answer) -> similarity from 0 to 1.
        tolerance: Relative difference of two numbers that are equal; used by "number" only.
        correct_from: Lowest similarity that counts as correct (0: measured, but always correct).
    """

    compare: Comparison | Callable[[Any, Any], float] = "exact"
    tolerance: float = _ROUNDING
    correct_from: float = 1.0

    def similarity(self, gold: Any, answer: Any) -> float:
        """Similarity from 0 to 1 of two values that are both present.

        Args:
            gold: The expected value, as JSON.
            answer: The answered value, as JSON.
        """
        if callable(self.compare):
            return min(1.0, max(0.0, float(self.compare(gold, answer))))
        if self.compare == "token_f1":
            return token_f1(_plain(gold), _plain(answer))
        if self.compare == "number" and (pair := _numbers(gold, answer)) is not None:
            return float(self._is_near(*pair))
        if self.compare == "date":
            return float(_same(_moment(gold), _moment(answer), fold=False))
        fold = self.compare == "casefold"
        return float(_same(gold, answer, fold))

    def _is_near(self, gold: float | Decimal, answer: float | Decimal) -> bool:
        exact = isinstance(gold, Decimal) and self.tolerance == _ROUNDING
        return (
            gold == answer if exact else math.isclose(gold, answer, rel_tol=self.tolerance, abs_tol=_ROUNDING)
        )

    def is_correct(self, similarity: float) -> bool:
        """Whether this similarity counts as correct, give or take rounding.

        Args:
            similarity: As ``similarity`` returns it.
        """
        return similarity >= self.correct_from - _ROUNDING


Rules = Mapping[str, FieldRule | Comparison | Callable[[Any, Any], float]]
"""Field path -> rule, a comparison's name or a function, as users pass them."""


def as_rule(rule: FieldRule | Comparison | Callable[[Any, Any], float]) -> FieldRule:
    """A rule from a rule, a comparison's name or a function; raises ConfigurationError for an unknown name."""
    rule = rule if isinstance(rule, FieldRule) else FieldRule(compare=rule)
    if not callable(rule.compare) and rule.compare not in _COMPARISONS:
        raise ConfigurationError(f"unknown comparison {rule.compare!r}: use one of {', '.join(_COMPARISONS)}")
    return rule


@lru_cache(maxsize=_TEXTS)
def normal_text(text: str) -> str:
    """Unicode NFC with every run of white space collapsed to one space and none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def token_f1(gold: str, answer: str) -> float:
    """F1 of the two texts' words as multisets: runs of letters and digits, ignoring case."""
    gold_words, answer_words = Counter(_words(gold)), Counter(_words(answer))
    total = gold_words.total() + answer_words.total()
    return 2 * (gold_words & answer_words).total() / total if total else 1.0


def embedding_similarity(embed_model: BaseEmbedding) -> Callable[[Any, Any], float]:
    """A comparison of free texts by the similarity of their embeddings; each text is embedded once.

    Args:
        embed_model: LlamaIndex embedding model; the embeddings of the 4,096 texts used last are kept.

    Returns:
        A function for ``FieldRule.compare`` or ``fields=`` of ``compare``.
    """
    embedded = lru_cache(maxsize=_EMBEDDINGS)(embed_model.get_text_embedding)

    def similar(gold: Any, answer: Any) -> float:
        return float(embed_model.similarity(embedded(_plain(gold)), embedded(_plain(answer))))

    return similar


def _words(text: str) -> list[str]:
    """Runs of letters and digits, case-folded."""
    folded = unicodedata.normalize("NFC", text).casefold()
    return "".join(c if c.isalnum() else " " for c in folded).split()


def _same(gold: Any, answer: Any, fold: bool) -> bool:
    """JSON equality: numbers by value, texts normalised, lists in order; True is not 1."""
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
    """The value as a date or datetime, or unchanged where it is neither."""
    try:
        return _DATE.validate_python(value)
    except ValidationError:
        return value


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else canonical_json(value)


def _numbers(gold: Any, answer: Any) -> tuple[float, float] | tuple[Decimal, Decimal] | None:
    """Both values as numbers, as Decimals where one is text; None where one is no number."""
    if is_number(gold) and is_number(answer):
        return gold, answer
    texts = [value if isinstance(value, str) else str(value) for value in (gold, answer)]
    if isinstance(gold, bool) or isinstance(answer, bool) or not all(map(_DECIMAL_TEXT.fullmatch, texts)):
        return None
    return Decimal(texts[0]), Decimal(texts[1])
