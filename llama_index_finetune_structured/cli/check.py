"""The ``check`` command: validate a training file, count its tokens and estimate the cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..dataset.checks.report import CheckReport, check
from ..errors import ConfigurationError
from ..local.model.prompts import SchemaPrompt, ToolPrompt
from ..local.model.reasoning import Thinking
from .command import Result, command, finite, one_of
from .schema_option import SchemaOption, answer_class

__all__ = ["register"]


def check_file(
    data: Annotated[Path, typer.Argument(help="Training file of any format, or a capture.")],
    target: Annotated[
        str,
        typer.Option(
            callback=one_of("local", "openai", "trl", "gradient"),
            help="Trainer that the file is for: local, openai, trl or gradient.",
        ),
    ] = "local",
    base_model: Annotated[
        str | None,
        typer.Option(
            help="Base model whose tokenizer is used, for local and trl (default: that of --start-from, else the "
            "embedded one)."
        ),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Maximum tokens in a row (default: the target's limit).")
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Passes over the data, for tokens and cost (default: 1; local: as train would choose).",
        ),
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0, callback=finite, help="Price of a million training tokens.")
    ] = None,
    fix: Annotated[Path | None, typer.Option(help="Write the good lines to this new file.")] = None,
    schema: SchemaOption = None,
    schema_prompt: Annotated[
        SchemaPrompt | None,
        typer.Option(
            help="For local, how prompts say the schema: json, compact or none (default: none from 100 rows of one "
            "schema on, else compact)."
        ),
    ] = None,
    tool_prompt: Annotated[
        ToolPrompt | None,
        typer.Option(
            help="For local, how agents' tools and calls are written: own (as the base model's chat template does) or "
            "json (default: own where the template has a form that can be read back)."
        ),
    ] = None,
    thinking: Annotated[
        Thinking,
        typer.Option(help="For local, whether the reasoning of answers is trained: keep or drop."),
    ] = "drop",
    start_from: Annotated[
        Path | None,
        typer.Option(help="Adapter or run that training goes on from: fields that are new to it are named."),
    ] = None,
) -> Result:
    """Validate every line as the target would train on it: problems with line and fix, tokens, cost.

    The file itself is not changed. The exit code is 1 if there are errors,
    unless --fix left those lines out. With --schema an answer that the class
    refuses is an error too.
    """
    report = check(
        data,
        target=target,
        base_model=base_model,
        max_length=max_length,
        epochs=epochs,
        price_per_million=price,
        output_cls=answer_class(schema, data),
        schema_prompt=schema_prompt,
        tool_prompt=tool_prompt,
        thinking=thinking,
        start_from=start_from,
    )
    fixed = fix is not None and _fix(report, fix)
    left = () if fix is None else (f"the {report.good} good lines are in {fix}",)
    return Result(_data(report, fix), (str(report), *left), ok=report.ok or fixed)


def _fix(report: CheckReport, path: Path) -> bool:
    """Write the good lines to ``path``; whether no error is left. An error of the whole file remains one."""
    if path.exists():
        raise ConfigurationError(f"{path}: exists and is not overwritten; give a new file")
    if not report.good:
        raise ConfigurationError(f"{report.source}: no good line to write to {path}\n{report}")
    report.fix(path)
    return all(problem.line > 0 or problem.is_warning for problem in report.problems)


def _data(report: CheckReport, fixed: Path | None) -> dict[str, object]:
    return {
        "ok": report.ok,
        "target": report.target,
        "lines": report.lines,
        "good": report.good,
        "problems": [
            {
                "file": problem.file,
                "line": problem.line,
                "code": problem.code,
                "message": problem.message,
                "fix": problem.fix,
                "is_warning": problem.is_warning,
            }
            for problem in report.problems
        ],
        "tokens": report.tokens,
        "trained_tokens": report.trained_tokens,
        "reasoning_tokens": report.reasoning_tokens,
        "longest_tokens": report.longest_tokens,
        "estimated": report.estimated,
        "window_rows": report.window_rows,
        "counterfactual_rows": report.counterfactual_rows,
        "epochs": report.epochs,
        "schema_tokens": report.schema_tokens,
        "cost": report.cost,
        "memory": report.memory
        and {
            "needed_bytes": report.memory.need,
            "free_bytes": report.memory.free,
            "fits": report.memory.fits,
            "checkpoint_layers": report.memory.checkpoint_layers,
            "piece_tokens": report.memory.piece_tokens,
        },
        "trained_span": report.span and report.span.trained_text,
        "fixed": fixed and str(fixed),
    }


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(
        app,
        name="check",
        example="finetune-structured check data.jsonl --target openai --price 25 --fix good.jsonl",
    )(check_file)
