"""Systems and Examples -> Scorecard; also learning curve, parity of exports, text answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .comparison import acompare, compare
    from .export_parity import Parity, parity
    from .learning_curves import LearningCurve, learning_curve
    from .report.costs import BreakEven, Prices
    from .score.intervals import Difference
    from .score.rules import FieldRule, embedding_similarity
    from .scorecard import Scorecard
    from .texts import TextScorecard, compare_texts
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            ".comparison": ["acompare", "compare"],
            ".report.costs": ["BreakEven", "Prices"],
            ".score.intervals": ["Difference"],
            ".learning_curves": ["LearningCurve", "learning_curve"],
            ".export_parity": ["Parity", "parity"],
            ".score.rules": ["FieldRule", "embedding_similarity"],
            ".scorecard": ["Scorecard"],
            ".texts": ["TextScorecard", "compare_texts"],
        },
    )

__all__ = [
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
