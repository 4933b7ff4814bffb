"""The ``tune`` command: check, split, train and score in one run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..dataset.schema.load import load_schema
from ..local.model.base_models import DEFAULT_BASE_MODEL
from ..tuning.run import run_tuning
from .command import Result, command, finite, say
from .schema_option import TrainSchemaOption, tell_class
from .scores import score_result

__all__ = ["register"]


def tune_file(
    data: Annotated[Path, typer.Argument(help="Training file of any form that check accepts, or a capture.")],
    base_model: Annotated[
        str, typer.Option(help="Base model: the embedded one, a folder, a .gguf file or a hub id.")
    ] = DEFAULT_BASE_MODEL,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.01, callback=finite, help="Minutes that training may take; scoring comes on top."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of the run (default: one of tune-output, named by the content)."),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(help="File of held-out rows to score (default: a fifth of the documents or questions)."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of split, order and initial weights.")] = 0,
    schema: TrainSchemaOption = None,
) -> Result:
    """Check the rows, hold some out, train on the others, score base and tuned model.

    Writes the adapter, scorecard.json and report.html. Needs the extra
    'local'. Ctrl-C saves; the same command resumes a run that was stopped, and
    shows a finished one. The exit code is 1 if every call to a model failed.
    """
    if schema is None:
        tell_class(data)
    done = run_tuning(
        data,
        base_model,
        minutes=minutes,
        validation=validation,
        output_cls=None if schema is None else load_schema(schema),
        output_dir=output,
        seed=seed,
        say=say,
    )
    result = score_result(done.scorecard, scorecard=done.scorecard_path, report=done.report_path)
    about = {"model": str(done.folder), "trained_on": done.rows, "held_out": done.held_out}
    return replace(
        result, data={**about, **dict(result.data)}, shown=(*result.shown, f"Model: {done.folder}")
    )


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(
        app, name="tune", example="finetune-structured tune citations.jsonl --minutes 10 --output citations"
    )(tune_file)
