"""Systems and Examples -> scores: comparison, scorecard, report, learning curve, parity."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .asking import AskSettings
    from .compare import acompare, compare
    from .costs import BreakEven, Prices
    from .intervals import Difference
    from .learning_curve import LearningCurve, learning_curve
    from .parity import Parity, parity
    from .rules import FieldRule, embedding_similarity
    from .scorecard import Scorecard
    from .texts import TextScorecard, compare_texts
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "asking": ["AskSettings"],
            "compare": ["acompare", "compare"],
            "costs": ["BreakEven", "Prices"],
            "intervals": ["Difference"],
            "learning_curve": ["LearningCurve", "learning_curve"],
            "parity": ["Parity", "parity"],
            "rules": ["FieldRule", "embedding_similarity"],
            "scorecard": ["Scorecard"],
            "texts": ["TextScorecard", "compare_texts"],
        },
    )

__all__ = [
    "AskSettings",
    "BreakEven",
    "Difference",
    "FieldRule",
    "LearningCurve",
    "Parity",
    "Prices",
    "Scorecard",
    "TextScorecard",
    "acompare",
    "compare",
    "compare_texts",
    "embedding_similarity",
    "learning_curve",
    "parity",
]
