"""LLMs, query engines and programs -> scores: per-field scorecard, comparison, report."""

from .compare import acompare, compare
from .costs import Prices
from .learning_curve import LearningCurve, learning_curve
from .parity import Parity, parity
from .rules import FieldRule, embedding_similarity
from .scorecard import Scorecard
from .texts import compare_texts

__all__ = [
    "FieldRule",
    "LearningCurve",
    "Parity",
    "Prices",
    "Scorecard",
    "acompare",
    "compare",
    "compare_texts",
    "embedding_similarity",
    "learning_curve",
    "parity",
]
