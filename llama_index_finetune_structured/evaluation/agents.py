"""``compare_agents``: agents answer the questions of gold runs, and every call of a tool is scored."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_index.core.llms.llm import LLM
from pydantic import JsonValue

from ..background import blocking
from ..errors import DatasetError
from ..example import Example
from ..files import write_text
from ..notebook_html import escape
from ..printable import one_line
from .report.agent_page import agent_figures, agent_page
from .report.agent_text import agent_table, agent_verdict
from .report.card import PrintedCard
from .report.terminal import FittedTable
from .results import references_of
from .run.agent_run import AgentRun, captured_runs, captured_turn
from .run.agent_runs import AgentSource, ask_agents, ask_for_turns, run_of
from .run.ask import AskSettings, SystemAnswers
from .run.usable_rows import LeftOut
from .score.agent_scores import AgentRow, AgentTable, agent_differences, agent_scores, run_resamples
from .score.rules import Rules
from .score.tool_calls import AnswerRule, RunPlan, grade_run

__all__ = [
    "AgentScorecard",
    "acompare_agents",
    "arun_agent",
    "ascore_turns",
    "compare_agents",
    "run_agent",
    "score_turns",
]


class AgentScorecard(AgentTable, PrintedCard):
    """Agents side by side on the same questions. Rates are from 0 to 1, times in seconds.

    Attributes:
        systems: Name -> figures: ``rates`` (by measure, with intervals), ``tools`` (by name), ``steps``, tokens,
            ``seconds_per_run`` and others.
        measures: Measure -> how it is counted: "value" (a share), "list" (F1) or "text" (mean similarity).
        differences: Of every system to the first one and to the teacher, in every measure.
        rows: Every gold run with every system's run.
        left_out: The gold runs that were not asked, each with the reason.
        settings: Facts about the run, for readers: ``concurrency``, ``timeout_s`` and the notes.
        created: Time of the comparison, ISO 8601, UTC.
    """

    def verdict(self) -> str:
        """The main result in a sentence or two, with 95% intervals."""
        return agent_verdict(self)

    def _repr_html_(self) -> str:
        """Verdict and figures, for notebooks."""
        problems = "".join(f"<p>{escape(problem)}</p>" for problem in self.problems())
        return f"<p>{escape(self.verdict())}</p>{agent_figures(self)}{problems}"

    def table(self) -> FittedTable:
        """A table for rich: one line per system, or one per figure where that is too wide for the terminal."""
        return agent_table(self)

    def __repr__(self) -> str:
        return one_line(
            f"<AgentScorecard of {len(self.rows)} examples: {', '.join(self.systems)}; print() shows it>"
        )

    def to_html(self, path: str | os.PathLike[str], *, title: str = "Agents") -> Path:
        """Write one self-contained page.

        Args:
            path: The HTML file; one that exists is replaced.
            title: Heading of the page.

        Returns:
            ``path``.
        """
        return write_text(Path(path), agent_page(self, title))


async def acompare_agents(
    agents: Mapping[str, AgentSource],
    gold: Iterable[Example] | Iterable[AgentRun],
    *,
    fields: Rules | None = None,
    answer: AnswerRule = "exact",
    max_iterations: int | None = None,
    concurrency: int = 8,
    timeout_s: float = 600.0,
    cache_dir: str | Path | None = None,
    notes: Mapping[str, JsonValue] | None = None,
    show_progress: bool = True,
) -> AgentScorecard:
    """Run every agent on the question of every gold run and compare what it did.

    Each run starts with the gold run's conversation and without other memory. A run that raises, takes longer than
    ``timeout_s`` or exceeds ``max_iterations`` counts as wrong; its calls are scored as far as it went. Tools are
    really called. The agents run one after the other.

    Args:
        agents: Name -> FunctionAgent, ReActAgent, AgentWorkflow or another workflow agent of LlamaIndex, or a function
            without arguments that makes one for each question. The first one is the baseline that the others are
            compared with, and so is one named "teacher".
        gold: Captured rows (a FinetuneDataset), whose calls are joined to runs, or runs as ``run_agent`` gives them.
            Rows that are no turn of an agent are ignored.
        fields: "tool.argument" -> rule, as in ``compare``. Arguments without a rule are compared as the tool's schema
            suggests; an argument that is left out has the schema's default.
        answer: Rule of the final answer: a FieldRule, a comparison's name or a function (gold, answer) -> 0..1, such
            as ``embedding_similarity(...)``; "ignore" leaves it out.
        max_iterations: Most model answers of a run. None: the agent's own default.
        concurrency: Most runs at once.
        timeout_s: Seconds that one run may take.
        cache_dir: Folder where runs are stored as they end; a later comparison makes only the missing ones.
        notes: Facts about this run that are shown on the page and stored in the JSON (as ``settings``).
        show_progress: Whether to show a progress bar for each agent.

    Raises:
        ConfigurationError: Before the first run: there are no agents, one is of another class, a comparison is
            unknown, ``fields`` has an argument that no tool has, a number is not positive, or ``cache_dir`` cannot be
            written. Later: a run cannot be written to ``cache_dir`` (a full disk).
        DatasetError: Before the first run: there is no gold run that ended.
        MissingDependencyError: An agent's package is not installed.
    """
    asking = AskSettings(concurrency, timeout_s, cache_dir, show_progress)
    golds, left_out = _gold_runs(gold)
    plan = RunPlan(golds, fields, answer)
    answers = await ask_agents(agents, golds, max_iterations, asking)
    return _summarise(golds, answers, plan, asking, notes, left_out)


compare_agents = blocking(acompare_agents)


async def ascore_turns(
    llms: Mapping[str, LLM],
    dataset: Iterable[Example],
    *,
    fields: Rules | None = None,
    answer: AnswerRule = "exact",
    concurrency: int = 8,
    timeout_s: float = 600.0,
    cache_dir: str | Path | None = None,
    notes: Mapping[str, JsonValue] | None = None,
    show_progress: bool = True,
) -> AgentScorecard:
    """Ask every LLM for each captured turn of an agent, with the captured messages and tools.

    An error in one turn has no effect on the next one, and no tool is called. Each row of the scorecard is a turn:
    its calls, or its text where it has none.

    Args:
        llms: Name -> LLM whose ``achat`` takes ``tools=`` in OpenAI's form, as LoraLLM and OpenAI do. The first one is
            the baseline that the others are compared with, and so is one named "teacher".
        dataset: Captured rows; those that are no turn of an agent are ignored.
        fields: "tool.argument" -> rule, as in ``compare_agents``.
        answer: Rule of the text of a turn without calls, as in ``compare_agents``.
        concurrency: Most calls at once.
        timeout_s: Seconds that one call may take.
        cache_dir: Folder where answers are stored as they arrive; a later run asks only for the missing ones.
        notes: Facts about this run that are shown on the page and stored in the JSON (as ``settings``).
        show_progress: Whether to show a progress bar for each LLM.

    Raises:
        ConfigurationError: As ``compare_agents``.
        DatasetError: Before the first call: no row is a turn of an agent.
        MissingDependencyError: An LLM's package is not installed.
    """
    asking = AskSettings(concurrency, timeout_s, cache_dir, show_progress)
    rows = [example for example in dataset if example.is_agent_turn]
    if not rows:
        raise DatasetError(_NO_ROWS)
    golds = [captured_turn(example) for example in rows]
    plan = RunPlan(golds, fields, answer)
    answers = await ask_for_turns(llms, golds, [_options(example) for example in rows], asking)
    return _summarise(golds, answers, plan, asking, notes, ())


score_turns = blocking(ascore_turns)


async def arun_agent(
    agent: AgentSource,
    questions: Iterable[str],
    *,
    max_iterations: int | None = None,
    concurrency: int = 8,
    timeout_s: float = 600.0,
    cache_dir: str | Path | None = None,
    show_progress: bool = True,
) -> list[AgentRun]:
    """Run an agent on every question; the runs of a teacher are gold for ``compare_agents``.

    Args:
        agent: An agent of LlamaIndex, or a function without arguments that makes one for each question.
        questions: The questions; each run starts without memory.
        max_iterations: Most model answers of a run. None: the agent's own default.
        concurrency: Most runs at once.
        timeout_s: Seconds that one run may take.
        cache_dir: Folder where runs are stored as they end; a later call makes only the missing ones.
        show_progress: Whether to show a progress bar.

    Returns:
        The runs in the order of the questions; a failed one has an ``error``.

    Raises:
        ConfigurationError: The agent is of another class, a number is not positive, or ``cache_dir`` cannot be
            written.
        MissingDependencyError: The agent's package is not installed.
    """
    asking = AskSettings(concurrency, timeout_s, cache_dir, show_progress)
    asked = [AgentRun(question=question) for question in questions]
    answers = await ask_agents({"agent": agent}, asked, max_iterations, asking)
    return [run_of(answer) for answer in answers["agent"].answers]


run_agent = blocking(arun_agent)

_NO_ROWS = (
    "nothing to compare on: no row is a turn of an agent; capture a run of an agent with tools, whose rows have tools "
    "and no answer_schema"
)


def _gold_runs(gold: Iterable[Example] | Iterable[AgentRun]) -> tuple[list[AgentRun], tuple[LeftOut, ...]]:
    """The gold runs that ended, and the others. Raises DatasetError where no run is left."""
    items: list[Any] = list(gold)
    runs = [item for item in items if isinstance(item, AgentRun)]
    found, left_out = captured_runs(item for item in items if isinstance(item, Example))
    for at, run in enumerate(runs):
        if run.error is None:
            found.append(run)
        else:
            left_out += (LeftOut(row=at, example_id=run.id, reason=f"the gold run failed: {run.error}"),)
    if found:
        return found, left_out
    if left_out:
        raise DatasetError(
            f"nothing to compare on: none of the {len(left_out)} gold runs ended; the first: {left_out[0].reason}"
        )
    raise DatasetError(_NO_ROWS)


def _options(example: Example) -> dict[str, Any]:
    """The options that the captured call was made with."""
    options = {"tool_choice": example.tool_choice, "parallel_tool_calls": example.parallel_tool_calls}
    return {"tools": example.tools} | {key: value for key, value in options.items() if value is not None}


def _summarise(
    golds: Sequence[AgentRun],
    answers: Mapping[str, SystemAnswers],
    plan: RunPlan,
    asking: AskSettings,
    notes: Mapping[str, JsonValue] | None,
    left_out: tuple[LeftOut, ...],
) -> AgentScorecard:
    runs = {name: [run_of(answer) for answer in system.answers] for name, system in answers.items()}
    rows = [
        AgentRow(gold=gold, runs={name: grade_run(runs[name][at], gold, plan) for name in runs})
        for at, gold in enumerate(golds)
    ]
    resamples = run_resamples(rows, plan.kinds)
    systems = agent_scores(rows, plan, {n: system.wall_seconds for n, system in answers.items()}, resamples)
    facts: dict[str, JsonValue] = {"concurrency": asking.concurrency, "timeout_s": asking.timeout_s}
    return AgentScorecard(
        systems=systems,
        measures=plan.kinds,
        differences=tuple(agent_differences(systems, references_of(systems), resamples)),
        rows=tuple(rows),
        left_out=left_out,
        settings=facts | dict(notes or {}),
    )
