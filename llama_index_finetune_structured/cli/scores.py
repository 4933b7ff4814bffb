"""A scorecard as the result of a command."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..evaluation import Prices, Scorecard
from ..evaluation.results import main_system
from .command import Result

__all__ = ["score_result"]


def score_result(card: Scorecard, *, scorecard: Path, report: Path, prices: Prices | None = None) -> Result:
    """Verdict, main figures of every system, what failed, paths of the files; with ``prices`` the break-even point.

    The exit code is 1 where a system gave no answer at all: its figures say nothing about it.
    """
    problems = card.problems()
    data: dict[str, Any] = {
        "verdict": card.verdict(),
        "examples": len(card.rows),
        "systems": {
            name: {
                "schema_valid": score.schema_valid,
                "exact_match": score.exact_match,
                "field_score": score.field_score,
                "fields": {path: field.headline for path, field in score.fields.items()},
                "seconds_per_answer": score.seconds_per_answer,
            }
            for name, score in card.systems.items()
        },
        "problems": problems,
        "left_out": len(card.left_out),
        "scorecard": str(scorecard),
        "report": str(report),
    }
    shown: list[Any] = [card.table(), card.verdict(), *problems]
    if prices is not None:
        student = main_system(card)
        break_even = card.break_even(student, prices)
        data["break_even"] = asdict(break_even)
        shown.append(break_even.sentence(student))
    if card.unanswered:
        data["error"] = f"{', '.join(card.unanswered)} gave no answer; the causes are under 'problems'"
    return Result(data, (*shown, f"Report: {report}   figures: {scorecard}"), ok=not card.unanswered)
