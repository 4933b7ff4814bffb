"""A scorecard as the result of a command."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..evaluation import AgentScorecard, Prices, Scorecard
from ..evaluation.results import main_system
from .command import Result

__all__ = ["agent_score_result", "score_result"]


def score_result(
    card: Scorecard,
    *,
    scorecard: Path,
    report: Path,
    prices: Prices | None = None,
    errors: Path | None = None,
) -> Result:
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
                "reasoning_tokens": score.reasoning_tokens,
            }
            for name, score in card.systems.items()
        },
        "problems": problems,
        "left_out": len(card.left_out),
        "scorecard": str(scorecard),
        "report": str(report),
    }
    if errors is not None:
        data["errors"] = str(errors)
    shown: list[Any] = [card.table(), card.verdict(), *problems]
    if prices is not None:
        student = main_system(card)
        break_even = card.break_even(student, prices)
        data["break_even"] = asdict(break_even)
        shown.append(break_even.sentence(student))
    if card.unanswered:
        data["error"] = f"{', '.join(card.unanswered)} gave no answer; the causes are under 'problems'"
    return Result(data, (*shown, f"Report: {report}   figures: {scorecard}"), ok=not card.unanswered)


def agent_score_result(card: AgentScorecard, *, scorecard: Path, report: Path) -> Result:
    """Verdict, rates of every agent, what failed, the files; the exit code is 1 where every run of one failed."""
    problems = card.problems()
    silent = [
        name
        for name, score in card.systems.items()
        if sum(failure.count for failure in score.failures if failure.call_failed) == score.n
    ]
    data: dict[str, Any] = {
        "verdict": card.verdict(),
        "runs": len(card.rows),
        "systems": {
            name: {measure: rate.rate for measure, rate in score.rates.items()}
            | {"steps": score.steps, "seconds_per_run": score.seconds_per_run}
            | {"reasoning_tokens": score.reasoning_tokens}
            for name, score in card.systems.items()
        },
        "problems": problems,
        "left_out": len(card.left_out),
        "scorecard": str(scorecard),
        "report": str(report),
    }
    if silent:
        data["error"] = f"{', '.join(silent)} made no run; the causes are under 'problems'"
    shown: tuple[Any, ...] = (
        card.table(),
        card.verdict(),
        *problems,
        f"Report: {report}   figures: {scorecard}",
    )
    return Result(data, shown, ok=not silent)
