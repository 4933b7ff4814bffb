"""The ``improve`` and ``rollback`` commands: a new version of a tuned run, and the way back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..dataset.schema.load import load_schema
from ..tuning.improve import MARGIN, Start, run_improvement
from ..tuning.scored_run import REPORT, SCORECARD
from ..tuning.versions import rollback
from .command import Result, command, finite, say
from .schema_option import TrainSchemaOption
from .scores import score_result

__all__ = ["register"]

RunArgument = Annotated[Path, typer.Argument(help="Folder of a finished run of tune.")]


def improve_run(
    run: RunArgument,
    capture: Annotated[
        Path,
        typer.Argument(help="New rows, such as a capture of the answers of a teacher; any form of tune."),
    ],
    margin: Annotated[
        float,
        typer.Option(
            min=0, max=1, callback=finite, help="How much worse the field score may be, from 0 to 1."
        ),
    ] = MARGIN,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.01, callback=finite, help="Minutes that training may take (default: as in the run)."
        ),
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Location of the base model, if it moved after training.")
    ] = None,
    schema: TrainSchemaOption = None,
    start_from: Annotated[
        Start,
        typer.Option(
            help="Train the new version from the base model on all rows (base), or go on from the version that serves "
            "(current), on the new rows and as many old ones."
        ),
    ] = "base",
) -> Result:
    """Train a new version of a run on its rows and new ones; it serves unless it may be worse.

    Both versions answer the run's held-out rows. The new one is promoted where
    the 95% interval of the difference in field score lies above the margin
    below zero. Ctrl-C saves; the same command resumes. The exit code is 1 if
    every call to a model failed.
    """
    done = run_improvement(
        run,
        capture,
        margin=margin,
        minutes=minutes,
        output_cls=None if schema is None else load_schema(schema),
        base_model=base_model,
        start_from=start_from,
        say=say,
    )
    result = score_result(done.scorecard, scorecard=done.folder / SCORECARD, report=done.folder / REPORT)
    about = {
        "version": done.version,
        "promoted": done.promoted,
        "reason": done.reason,
        "serves": done.serves,
        "taken": done.taken,
        "not_taken": dict(done.left_out),
    }
    return replace(result, data={**dict(result.data), **about}, shown=(*result.shown[:1], *done.lines()))


def roll_back(run: RunArgument) -> Result:
    """Let the version of a run serve that served before. Nothing is removed."""
    version = rollback(run)
    return Result({"serves": version}, (f"Version {version} serves.",))


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, name="improve", example="finetune-structured improve citations handed-over.jsonl")(
        improve_run
    )
    command(app, name="rollback", example="finetune-structured rollback citations")(roll_back)
