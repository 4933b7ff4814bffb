"""The figures of agents in words: verdict, labels, a table for the terminal."""

from __future__ import annotations

from ...printable import one_line
from ..results import TEACHER, references_of, students_of
from ..score.agent_scores import AgentScore, AgentTable
from ..score.metrics import mean_of_known
from .terminal import FittedTable
from .text import against_sentence, mean_text, percent

__all__ = ["LABELS", "agent_table", "agent_verdict", "gold_figures", "main_agent", "measured"]

LABELS = {
    "run_right": "right",
    "run_ended": "ended",
    "answer": "answer",
    "tool_use": "text or call",
    "tool_calls": "calls F1",
    "valid_calls": "valid calls",
    "exact_arguments": "arguments exact",
    "arguments": "arguments F1",
    "order_kept": "in order",
    "needless_calls": "needless",
    "missing_calls": "missing",
    "failed_calls": "failed",
}
"""Measure -> its name in tables."""
_DASH = "–"


def main_agent(table: AgentTable) -> str:
    """The system that a report is about: the best one that is neither the first (the baseline) nor the teacher."""
    return max(students_of(table.systems), key=lambda name: _figures(table.systems[name]))


def _figures(score: AgentScore) -> tuple[float, ...]:
    return tuple(score.rates[name].rate for name in ("run_right", "tool_calls") if name in score.rates)


def agent_verdict(table: AgentTable) -> str:
    """The best student against the first system and the teacher, by the share of runs that are right in whole."""
    main = main_agent(table)
    score = table.systems[main]
    if score.all_calls_failed:
        return one_line(f"There is no result: no run of {main} took place.")
    parts = [
        against_sentence(table.difference(main, reference), score.n)
        for reference in references_of(table.systems)
        if main not in (reference, TEACHER) and not table.systems[reference].all_calls_failed
    ]
    claim = f"{main} {'; it '.join(parts)}. " if parts else ""
    n, right = score.n, percent(score.rates["run_right"].rate)
    cases = "case" if n == 1 else "cases"
    made = score.rates.get("tool_calls")
    calls = f" and finds {percent(made.rate)} of the tool calls (F1)" if made else ""
    return one_line(f"{claim}{'It' if claim else main} is right in whole in {right} of {n} {cases}{calls}.")


def measured(table: AgentTable) -> list[str]:
    """The measures that at least one system has a rate in."""
    return [name for name in table.measures if any(name in score.rates for score in table.systems.values())]


def gold_figures(table: AgentTable) -> tuple[float, float, float | None, float | None]:
    """(steps, calls, prompt tokens, completion tokens) of a gold run, as means."""
    golds = [row.gold for row in table.rows]

    return (
        sum(gold.steps for gold in golds) / len(golds),
        sum(len(gold.calls) for gold in golds) / len(golds),
        mean_of_known([gold.usage.prompt_tokens for gold in golds]),
        mean_of_known([gold.usage.completion_tokens for gold in golds]),
    )


def agent_table(table: AgentTable) -> FittedTable:
    """One line per system: the rates, steps, tokens and time of a run; the last line: what gold took."""
    measures = measured(table)
    reasons = any(score.reasoning_tokens for score in table.systems.values())
    rows = []
    for name, score in table.systems.items():
        rates = [percent(score.rates[m].rate) if m in score.rates else _DASH for m in measures]
        tokens = map(mean_text, (score.prompt_tokens, score.completion_tokens), (0, 0))
        thought = (mean_text(score.reasoning_tokens),) if reasons else ()
        rows.append(
            (name, *rates, mean_text(score.steps), *tokens, *thought, f"{score.seconds_per_run:.1f} s")
        )
    steps, _, prompt, completion = gold_figures(table)
    gold = [mean_text(steps), mean_text(prompt, 0), mean_text(completion, 0), *([_DASH] if reasons else [])]
    rows.append(("(gold)", *(_DASH for _ in measures), *gold, _DASH))
    more = ("reasoning a call",) if reasons else ()
    headings = ("system", *(LABELS[m] for m in measures), "steps", "tokens in", "tokens out", *more, "time")
    return FittedTable(f"{len(table.rows)} examples", headings, tuple(rows))
