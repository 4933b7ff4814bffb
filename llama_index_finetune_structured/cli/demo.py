"""The ``demo`` command: the whole loop on an embedded model and corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..local.model.base_models import DEFAULT_BASE_MODEL
from .command import Result, command, say, settings_of
from .scores import score_result

__all__ = ["register"]


def demo(
    output: Annotated[Path, typer.Option(help="Folder for all files of the run.")] = Path("demo-output"),
    train_size: Annotated[
        int, typer.Option(min=4, help="Training questions, answered by the teacher.")
    ] = 184,
    test_size: Annotated[int, typer.Option(min=1, help="Held-out questions.")] = 40,
    seed: Annotated[int, typer.Option(help="Random seed of split, order and initial weights.")] = 0,
    base_model: Annotated[
        str, typer.Option(help="Base model: the embedded one, a folder, a .gguf file or a hub id.")
    ] = DEFAULT_BASE_MODEL,
    teacher: Annotated[
        str | None, typer.Option(help="Hosted teacher model ($OPENAI_API_KEY); default: a docstring parser.")
    ] = None,
    api_base: Annotated[
        str | None, typer.Option(help="Address of the teacher's server (default: OpenAI).")
    ] = None,
) -> Result:
    """Distil a teacher into a small model on the documentation of networkx, and score both.

    Needs no key, unless --teacher is given, no GPU and no model hub. The same
    command resumes a run that was stopped, and shows a finished one.
    """
    from ..demo.run import DemoSettings, run

    settings = settings_of(
        DemoSettings,
        train_size=train_size,
        test_size=test_size,
        seed=seed,
        base_model=base_model,
        teacher=teacher,
        api_base=api_base,
    )
    card = run(settings, output, say)
    return score_result(card, scorecard=output / "scorecard.json", report=output / "report.html")


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(
        app,
        example="finetune-structured demo --train-size 120 --test-size 40 --seed 1 --output demo-seed-1",
    )(demo)
