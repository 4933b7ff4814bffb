"""LLMs, query engines and programs -> scores: per-field scorecard, comparison, report."""

from .compare import acompare, compare
from .costs import Prices
from .parity import Parity, parity
from .rules import FieldRule, embedding_similarity
from .scorecard import Scorecard
from .texts import compare_texts

__all__ = [
    "FieldRule",
    "Parity",
    "Prices",
    "Scorecard",
    "acompare",
    "compare",
    "compare_texts",
    "embedding_similarity",
    "parity",
]
