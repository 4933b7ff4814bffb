"""``finetune-structured jobs``: the runs in the journal, looked at, waited for and cancelled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..engines.hosted.engine import OpenAIFinetuneEngine
from ..engines.hosted.journal import Journal, Run, find_run, list_runs
from ..engines.hosted.providers import normal_status
from ..engines.timeouts import SYSTEM_CLOCK
from ..errors import FinetuneStructuredError

__all__ = ["app"]

app = typer.Typer(help="Hosted fine-tuning runs: list, show, wait, cancel.", no_args_is_help=True)

RunName = Annotated[str, typer.Argument(help="A run's folder, its name or how that begins, or a job id.")]
RunsFolder = Annotated[
    Path | None,
    typer.Option("--runs", help="Their folder [$FINETUNE_STRUCTURED_RUNS or finetune-runs]."),
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_COLOURS = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan"}


@app.command("list", epilog="Example: finetune-structured jobs list --live --every 30")
def list_all(
    runs: RunsFolder = None,
    live: Annotated[
        bool,
        typer.Option("--live", help="Ask the providers until all jobs are done."),
    ] = False,
    every_s: Annotated[float, typer.Option("--every", min=0.05, help="Seconds between two looks.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """List the runs, as they were last seen or live."""
    with _errors():
        if as_json:
            while live and _refresh(runs):
                SYSTEM_CLOCK.sleep(every_s)
            _print_json(
                [{"folder": str(folder)} | run.model_dump(mode="json") for folder, run in list_runs(runs)]
            )
            return
        if not live:
            Console().print(_table(list_runs(runs)))
            return
        with Live(_table(list_runs(runs)), console=Console(), refresh_per_second=4) as shown:
            while _refresh(runs):
                shown.update(_table(list_runs(runs)))
                SYSTEM_CLOCK.sleep(every_s)
            shown.update(_table(list_runs(runs)))


@app.command(epilog="Example: finetune-structured jobs show ftjob-abc123")
def show(name: RunName, runs: RunsFolder = None, as_json: JsonOption = True) -> None:  # it always is
    """Show everything the journal knows of one run, as JSON."""
    with _errors():
        Console().print_json(Journal(find_run(name, runs)).require().model_dump_json())


@app.command(epilog="Example: finetune-structured jobs wait ftjob-abc123 --timeout 3600")
def wait(
    name: RunName,
    runs: RunsFolder = None,
    timeout_s: Annotated[float | None, typer.Option("--timeout", help="Seconds to wait at most.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Wait for a run's end with a progress bar; the exit code is 1 unless it succeeded."""
    with _errors():
        job = OpenAIFinetuneEngine.from_run(find_run(name, runs), verbose=True).wait(timeout_s)
        found = {"id": job.id, "status": job.status, "model": job.fine_tuned_model}
        _print_json(found) if as_json else typer.echo(f"{job.id} {job.status}: {job.fine_tuned_model}")


@app.command(epilog="Example: finetune-structured jobs cancel ftjob-abc123")
def cancel(name: RunName, runs: RunsFolder = None, as_json: JsonOption = False) -> None:
    """Ask the provider to stop a run's job."""
    with _errors():
        job = OpenAIFinetuneEngine.from_run(find_run(name, runs)).cancel()
        found = {"id": job.id, "status": job.status}
        _print_json(found) if as_json else typer.echo(f"{job.id} {job.status}")


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, indent=1))


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except FinetuneStructuredError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


def _refresh(runs: Path | None) -> bool:
    """Ask the providers for news of every job under way; whether there was one to be had."""
    told = False
    for folder in [folder for folder, run in list_runs(runs) if _is_under_way(run)]:
        try:
            OpenAIFinetuneEngine.from_run(folder).get_current_job()
            told = True
        except FinetuneStructuredError as error:  # its key is not set, or the provider has forgotten it
            typer.echo(f"{folder.name}: {error}", err=True)
    return told


def _is_under_way(run: Run) -> bool:
    return run.engine == "openai" and run.job_id is not None and normal_status(run.status) == "running"


def _table(runs: list[tuple[Path, Run]]) -> Table:
    table = Table("run", "provider", "base model", "job", "status", "model or error", "updated")
    for column in table.columns:
        column.overflow = "fold"
    for folder, run in runs:
        status = run.status or run.phase
        colour = _COLOURS[normal_status(status)] if run.job_id else "magenta"
        outcome = run.fine_tuned_model or (run.error or "").partition("\n")[0]
        cells = [folder.name, run.provider, run.base_model, run.job_id or "", status, outcome, run.updated_at]
        table.add_row(*(Text(cell, style=colour if cell is status else "") for cell in cells))
    return table
