"""Systems and Examples -> Scorecard; also learning curve, parity of exports, text answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from ..llms.prices import Prices
    from .agents import (
        AgentScorecard,
        acompare_agents,
        arun_agent,
        ascore_turns,
        compare_agents,
        run_agent,
        score_turns,
    )
    from .calibration import acalibrate, calibrate
    from .comparison import acompare, compare
    from .export_parity import FormParity, Parity, parity
    from .learning_curves import LearningCurve, learning_curve
    from .report.costs import BreakEven
    from .report.gap import Gap
    from .report.terminal import FittedTable
    from .results import ScoredRow
    from .run.agent_run import AgentCall, AgentRun, AgentTurn
    from .run.kept_trust import KeptTrust
    from .run.usable_rows import LeftOut
    from .score.agent_scores import AgentRow, AgentScore, ToolScore
    from .score.answers import FieldScore
    from .score.failures import Failure
    from .score.intervals import Difference
    from .score.metrics import FieldMetrics, Interval, Metrics, ScoredAnswer, SystemScore
    from .score.refusals import RefusalScore
    from .score.rules import FieldRule, embedding_similarity
    from .score.tool_calls import ScoredAgentRun, ScoredCall
    from .score.trust_figures import FieldTrustScore, ReliabilityBin, RiskCoverage, TrustScore
    from .scorecard import Scorecard
    from .selection import aselect, select
    from .texts import TextAnswer, TextRow, TextScore, TextScorecard, compare_texts
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "..llms.prices": ["Prices"],
            ".agents": [
                "AgentScorecard",
                "acompare_agents",
                "arun_agent",
                "ascore_turns",
                "compare_agents",
                "run_agent",
                "score_turns",
            ],
            ".calibration": ["acalibrate", "calibrate"],
            ".comparison": ["acompare", "compare"],
            ".export_parity": ["FormParity", "Parity", "parity"],
            ".learning_curves": ["LearningCurve", "learning_curve"],
            ".report.costs": ["BreakEven"],
            ".report.gap": ["Gap"],
            ".report.terminal": ["FittedTable"],
            ".results": ["ScoredRow"],
            ".run.agent_run": ["AgentCall", "AgentRun", "AgentTurn"],
            ".run.kept_trust": ["KeptTrust"],
            ".run.usable_rows": ["LeftOut"],
            ".score.agent_scores": ["AgentRow", "AgentScore", "ToolScore"],
            ".score.answers": ["FieldScore"],
            ".score.failures": ["Failure"],
            ".score.intervals": ["Difference"],
            ".score.metrics": ["FieldMetrics", "Interval", "Metrics", "ScoredAnswer", "SystemScore"],
            ".score.rules": ["FieldRule", "embedding_similarity"],
            ".score.tool_calls": ["ScoredCall", "ScoredAgentRun"],
            ".score.refusals": ["RefusalScore"],
            ".score.trust_figures": ["FieldTrustScore", "ReliabilityBin", "RiskCoverage", "TrustScore"],
            ".scorecard": ["Scorecard"],
            ".selection": ["aselect", "select"],
            ".texts": ["TextAnswer", "TextRow", "TextScore", "TextScorecard", "compare_texts"],
        },
    )

__all__ = [
    "AgentCall",
    "AgentRow",
    "AgentRun",
    "AgentScore",
    "AgentScorecard",
    "AgentTurn",
    "BreakEven",
    "Difference",
    "Failure",
    "FieldMetrics",
    "FieldRule",
    "FieldScore",
    "FieldTrustScore",
    "FittedTable",
    "FormParity",
    "Gap",
    "Interval",
    "KeptTrust",
    "LearningCurve",
    "LeftOut",
    "Metrics",
    "Parity",
    "Prices",
    "RefusalScore",
    "ReliabilityBin",
    "RiskCoverage",
    "Scorecard",
    "ScoredAnswer",
    "ScoredCall",
    "ScoredRow",
    "ScoredAgentRun",
    "SystemScore",
    "TextAnswer",
    "TextRow",
    "TextScore",
    "TextScorecard",
    "ToolScore",
    "TrustScore",
    "acalibrate",
    "acompare",
    "acompare_agents",
    "arun_agent",
    "ascore_turns",
    "calibrate",
    "aselect",
    "compare",
    "compare_agents",
    "compare_texts",
    "embedding_similarity",
    "learning_curve",
    "parity",
    "run_agent",
    "score_turns",
    "select",
]
