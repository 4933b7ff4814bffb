"""The ``demo`` command: the whole loop on an embedded model and corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..local.model.base_models import DEFAULT_BASE_MODEL
from .command import Result, command, say, settings_of
from .scores import agent_score_result, score_result

__all__ = ["register"]

_ANSWERS, _AGENT_RUNS = (
    184,
    150,
)  # chosen: a run has about two calls, and the demonstration is to take some minutes


def demo(
    output: Annotated[Path, typer.Option(help="Folder for all files of the run.")] = Path("demo-output"),
    agent: Annotated[
        bool,
        typer.Option("--agent", help="Tune an agent that calls tools, instead of a query engine's model."),
    ] = False,
    train_size: Annotated[
        int | None,
        typer.Option(
            min=4, help="Training questions, answered by the teacher (default: 184, of an agent 150)."
        ),
    ] = None,
    test_size: Annotated[int, typer.Option(min=1, help="Held-out questions.")] = 40,
    seed: Annotated[int, typer.Option(help="Random seed of split, order and initial weights.")] = 0,
    base_model: Annotated[
        str, typer.Option(help="Base model: the embedded one, a folder, a .gguf file or a hub id.")
    ] = DEFAULT_BASE_MODEL,
    teacher: Annotated[
        str | None,
        typer.Option(help="Hosted teacher model ($OPENAI_API_KEY); default: a script without a model."),
    ] = None,
    api_base: Annotated[
        str | None, typer.Option(help="Address of the teacher's server (default: OpenAI).")
    ] = None,
) -> Result:
    """Distil a teacher into a small model on the documentation of networkx, and score both.

    With --agent the model learns to call tools: an agent answers questions with
    search, signatures, comparison and arithmetic, and every call is scored.
    Needs no key, unless --teacher is given, no GPU and no model hub. The same
    command resumes a run that was stopped, and shows a finished one.
    """
    from ..demo.agent_run import run_agents
    from ..demo.run import DemoSettings, run

    settings = settings_of(
        DemoSettings,
        train_size=train_size or (_AGENT_RUNS if agent else _ANSWERS),
        test_size=test_size,
        seed=seed,
        base_model=base_model,
        teacher=teacher,
        api_base=api_base,
        agent=agent,
    )
    scorecard, report = output / "scorecard.json", output / "report.html"
    if agent:
        return agent_score_result(run_agents(settings, output, say), scorecard=scorecard, report=report)
    return score_result(run(settings, output, say), scorecard=scorecard, report=report)


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(
        app,
        example="finetune-structured demo --train-size 120 --test-size 40 --seed 1 --output demo-seed-1",
    )(demo)
