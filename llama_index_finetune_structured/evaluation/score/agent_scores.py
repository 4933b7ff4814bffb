"""Figures of agents over their scored runs: rates with intervals, by tool, differences, cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from ...errors import ConfigurationError
from ...printable import one_line
from ..run.agent_run import AgentRun
from ..run.usable_rows import LeftOut
from .answers import FieldScore
from .failures import Failure, failure_sentence, group_failures
from .intervals import Difference, Resamples, check_system
from .metrics import FieldMetrics, Interval, ScoredAnswer, field_metrics, mean_of_known
from .tool_calls import RunPlan, ScoredAgentRun

__all__ = [
    "AgentRow",
    "AgentScore",
    "AgentTable",
    "ToolScore",
    "agent_differences",
    "agent_scores",
    "run_resamples",
]

_FIELDS = "fields."


class ToolScore(BaseModel):
    """The calls of one tool by one system.

    Attributes:
        calls: Counts of the calls: gold, answered (made), correct (aligned with a gold call), missing, invented.
        valid: Number of the made calls with arguments that fit the schema.
        exact: Number of the aligned calls with every argument right.
        failed: Number of the made calls that failed.
        arguments: Argument's path, without the tool's name -> figures over the aligned calls.
    """

    model_config = ConfigDict(frozen=True)

    calls: FieldScore
    valid: int
    exact: int
    failed: int
    arguments: dict[str, FieldMetrics]


class AgentScore(BaseModel):
    """One system's figures over all runs.

    Attributes:
        n: Number of runs.
        rates: Measure -> rate with its 95% interval; a measure that no run tells of is left out.
        tools: Tool's name -> figures of its calls, for every tool that gold or the system calls.
        steps: Mean number of the model's answers in a run.
        calls: Mean number of calls in a run.
        prompt_tokens: Mean tokens that the model read in a run; None where the runs do not report them.
        completion_tokens: Mean tokens that the model wrote in a run; None where the runs do not report them.
        reasoning_tokens: Mean tokens of reasoning in one answer of the model; None where the runs do not report them.
        seconds_per_run: Wall seconds of all runs / n.
        failures: The causes of the runs that did not end, most frequent first.
    """

    model_config = ConfigDict(frozen=True)

    n: int
    rates: dict[str, Interval]
    tools: dict[str, ToolScore]
    steps: float
    calls: float
    prompt_tokens: float | None = None
    completion_tokens: float | None = None
    reasoning_tokens: float | None = None
    seconds_per_run: float
    failures: tuple[Failure, ...] = ()

    @property
    def all_calls_failed(self) -> bool:
        """Whether no run took place, so that the rates say nothing about the system."""
        return sum(failure.count for failure in self.failures if failure.call_failed) == self.n


class AgentRow(BaseModel):
    """One gold run with the systems' runs.

    Attributes:
        gold: The gold run.
        runs: System -> its run, scored.
    """

    model_config = ConfigDict(frozen=True)

    gold: AgentRun
    runs: dict[str, ScoredAgentRun]


class AgentTable(BaseModel):
    """The data of an AgentScorecard, whose docstring has the attributes."""

    model_config = ConfigDict(frozen=True)

    systems: dict[str, AgentScore]
    measures: dict[str, str]
    differences: tuple[Difference, ...] = ()
    rows: tuple[AgentRow, ...]
    left_out: tuple[LeftOut, ...] = ()
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    created: str = Field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    @model_validator(mode="after")
    def _require_whole(self) -> AgentTable:
        """Raise ValueError where a file lacks a system's figures or runs, which tables and pages show."""
        if not self.systems or not self.rows or "run_right" not in self.measures:
            raise ValueError("it has no systems, rows or measures")
        for name, score in self.systems.items():
            if score.n != len(self.rows) or not {"run_right", "run_ended"} <= score.rates.keys():
                raise ValueError(f"{name!r} has no figures of every row")
        for row in self.rows:
            if row.runs.keys() != self.systems.keys():
                raise ValueError("a row has other systems' runs")
            for run in row.runs.values():
                golds = [call.gold for call in run.calls if call.gold is not None]
                if len(run.calls) != len(run.run.calls) or any(g >= len(row.gold.calls) for g in golds):
                    raise ValueError("a run has other calls than were scored")
        return self

    def difference(self, system: str, against: str, measure: str = "run_right") -> Difference:
        """``system`` minus ``against`` on the same questions, paired, with its 95% interval.

        Args:
            system: Name of a system.
            against: Name of the system that is subtracted.
            measure: A name in ``measures``.

        Raises:
            ConfigurationError: A name that is not in the table, or a measure that a system has no rate in.
        """
        for name in (system, against):
            check_system(name, self.systems)
            if measure not in self.systems[name].rates:
                known = ", ".join(self.systems[name].rates)
                raise ConfigurationError(f"{name!r} has no rate {measure!r}; it has: {one_line(known)}")
        for found in self.differences:
            if (found.system, found.against, found.metric) == (system, against, measure):
                return found
        return _difference(run_resamples(self.rows, self.measures), system, against, measure)

    def problems(self) -> list[str]:
        """One sentence for each kind of failure of a system, with its causes, and one on the rows left out."""
        found = []
        for name, score in self.systems.items():
            sentences = (
                failure_sentence(score.failures, score.n, "runs failed", call_failed=True),
                failure_sentence(
                    score.failures, score.n, "runs did not end by themselves", call_failed=False
                ),
            )
            found += [f"{one_line(name)}: {sentence}" for sentence in sentences if sentence]
        if self.left_out:
            n, reason = len(self.left_out), one_line(self.left_out[0].reason)
            found.append(f"{n} gold {'run was' if n == 1 else 'runs were'} left out; the first: {reason}")
        return found


def run_resamples(rows: Sequence[AgentRow], measures: dict[str, str]) -> Resamples:
    """Bootstrap resamples of the rows, for intervals."""
    scored = [{name: _as_answer(run) for name, run in row.runs.items()} for row in rows]
    return Resamples(scored, [row.gold.document_id for row in rows], measures)


def _as_answer(run: ScoredAgentRun) -> ScoredAnswer:
    """The run in the form that the bootstrap reads: its measures as fields."""
    ended, right = run.run.error is None, run.is_right
    return ScoredAnswer(valid=ended, exact=right, field_score=float(right), fields=run.measures)


def agent_scores(
    rows: Sequence[AgentRow], plan: RunPlan, wall_seconds: dict[str, float], resamples: Resamples
) -> dict[str, AgentScore]:
    """System -> its figures over the rows; ``wall_seconds``: system -> duration of all its runs."""
    return {
        name: _score(
            [row.gold for row in rows], [row.runs[name] for row in rows], plan, name, seconds, resamples
        )
        for name, seconds in wall_seconds.items()
    }


def agent_differences(
    systems: dict[str, AgentScore], references: Sequence[str], resamples: Resamples
) -> Iterator[Difference]:
    """Every system minus each reference, in every measure that both have a rate in."""
    for against in references:
        for name, score in systems.items():
            if name != against:
                for measure in (name for name in score.rates if name in systems[against].rates):
                    yield _difference(resamples, name, against, measure)


def _difference(resamples: Resamples, system: str, against: str, measure: str) -> Difference:
    found = resamples.difference(system, against, _FIELDS + measure)
    return found.model_copy(update={"metric": measure})


def _score(
    golds: Sequence[AgentRun],
    runs: Sequence[ScoredAgentRun],
    plan: RunPlan,
    name: str,
    wall_seconds: float,
    resamples: Resamples,
) -> AgentScore:
    n = len(runs)
    failed = [run.run for run in runs if run.run.error is not None]
    return AgentScore(
        n=n,
        rates={
            measure: resamples.interval(name, _FIELDS + measure)
            for measure, kind in plan.kinds.items()
            if _is_measured(kind, [run.measures[measure] for run in runs if measure in run.measures])
        },
        tools=_tool_scores(golds, runs, plan),
        steps=sum(run.run.steps for run in runs) / n,
        calls=sum(len(run.calls) for run in runs) / n,
        prompt_tokens=mean_of_known([run.run.usage.prompt_tokens for run in runs]),
        completion_tokens=mean_of_known([run.run.usage.completion_tokens for run in runs]),
        reasoning_tokens=_reasoning_a_step([run.run for run in runs]),
        seconds_per_run=wall_seconds / n,
        failures=group_failures([(r.call_failed, r.error_kind or "", r.error or "") for r in failed]),
    )


def _is_measured(kind: str, counts: Sequence[FieldScore]) -> bool:
    total = FieldScore.total(counts)
    return total.answers > 0 if kind == "value" else total.gold + total.answered > 0


def _reasoning_a_step(runs: Sequence[AgentRun]) -> float | None:
    """Over the runs that report it; None where none does."""
    known = [
        (run.reasoning_tokens, run.steps) for run in runs if run.reasoning_tokens is not None and run.steps
    ]
    return sum(tokens for tokens, _ in known) / sum(steps for _, steps in known) if known else None


def _tool_scores(
    golds: Sequence[AgentRun], runs: Sequence[ScoredAgentRun], plan: RunPlan
) -> dict[str, ToolScore]:
    names = dict.fromkeys(call.name for run in (*golds, *(run.run for run in runs)) for call in run.calls)
    return {name: _tool_score(name, golds, runs, plan) for name in names}


def _tool_score(
    name: str, golds: Sequence[AgentRun], runs: Sequence[ScoredAgentRun], plan: RunPlan
) -> ToolScore:
    made = [
        (call, scored)
        for run in runs
        for call, scored in zip(run.run.calls, run.calls, strict=True)
        if call.name == name
    ]
    aligned = [scored for _, scored in made if scored.gold is not None]
    due = sum(call.name == name for gold in golds for call in gold.calls)
    counts = FieldScore(
        gold=due,
        answered=len(made),
        correct=len(aligned),
        missing=due - len(aligned),
        invented=len(made) - len(aligned),
        credit=len(aligned),
        right=int(due == len(made) == len(aligned)),
    )
    return ToolScore(
        calls=counts,
        valid=sum(scored.invalid is None for _, scored in made),
        exact=sum(scored.exact for scored in aligned),
        failed=sum(bool(call.failed) for call, _ in made),
        arguments=dict(_arguments(name, [scored.fields for scored in aligned], plan)),
    )


def _arguments(
    name: str, scores: Sequence[dict[str, FieldScore]], plan: RunPlan
) -> Iterable[tuple[str, FieldMetrics]]:
    """The figures of every argument that gold or a call has."""
    for path in dict.fromkeys(path for fields in scores for path in fields):
        total = FieldScore.total(fields[path] for fields in scores if path in fields)
        if total.gold + total.answered:
            yield path.removeprefix(f"{name}."), field_metrics(plan.field_kinds.get(path, "value"), total)
