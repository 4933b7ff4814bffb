"""The ``jobs`` commands: list, show, wait for and cancel hosted runs, from their journals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..engines.hosted.engine import OpenAIFinetuneEngine
from ..engines.hosted.journal import RUNS_VARIABLE, Run, RunJournal, find_run, list_runs, runs_root
from ..engines.hosted.providers import normal_status
from ..engines.timeouts import SYSTEM_CLOCK, Timeouts
from ..errors import FinetuneStructuredError
from ..printable import one_line, printable
from .command import Result, command, finite, say

__all__ = ["register"]

RunName = Annotated[
    str, typer.Argument(help="A run's folder, the folder's name or its beginning, or a job id.")
]
RunsFolder = Annotated[
    Path | None,
    typer.Option("--runs", help=f"Folder of all runs (default: ${RUNS_VARIABLE}, else finetune-runs)."),
]

_COLOURS = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan"}


def list_all(
    runs: RunsFolder = None,
    live: Annotated[
        bool,
        typer.Option("--live", help="Poll the providers until all jobs have ended."),
    ] = False,
    every_s: Annotated[
        float, typer.Option("--every", min=0.05, callback=finite, help="Seconds between two polls of --live.")
    ] = 10,
) -> Result:
    """List the runs with their last known status, or poll them with --live."""
    if live:
        _poll_until_all_ended(runs, every_s)
    all_runs = list_runs(runs)
    rows = [{"folder": str(folder)} | run.model_dump(mode="json") for folder, run in all_runs]
    return Result(rows, (_table(all_runs) if all_runs else _no_runs(runs),))


def _no_runs(runs: Path | None) -> str:
    where = runs or runs_root()
    return f"no hosted runs in {where}; local training has no jobs: its run is the folder of train --output"


def show(name: RunName, runs: RunsFolder = None) -> Result:
    """Show everything that the journal holds on one run."""
    run = RunJournal(find_run(name, runs)).require()
    fields = Table.grid(padding=(0, 2))
    for field, value in run.model_dump(mode="json").items():
        if value not in (None, "", [], {}):
            fields.add_row(field, Text(printable(str(value))))
    return Result(run.model_dump(mode="json"), (fields,))


def wait(
    name: RunName,
    runs: RunsFolder = None,
    timeout_s: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            min=0,
            callback=finite,
            help=f"Maximum number of seconds to wait (default: {Timeouts().job_s:.0f}).",
        ),
    ] = None,
) -> Result:
    """Wait for the end of a run, with a progress bar; the exit code is 1 unless it succeeded."""
    job = OpenAIFinetuneEngine.from_run(find_run(name, runs), verbose=True).wait(timeout_s)
    data = {"id": job.id, "status": job.status, "model": job.fine_tuned_model}
    return Result(data, (f"{job.id} {job.status}: {job.fine_tuned_model}",))


def cancel(name: RunName, runs: RunsFolder = None) -> Result:
    """Ask the provider to stop the job of a run."""
    job = OpenAIFinetuneEngine.from_run(find_run(name, runs)).cancel()
    return Result({"id": job.id, "status": job.status}, (f"{job.id} {job.status}",))


def _poll_until_all_ended(runs: Path | None, every_s: float) -> None:
    """Poll all running jobs every ``every_s`` seconds, with the table of runs on the terminal meanwhile."""
    console = Console(stderr=True)
    with Live(_table(list_runs(runs)), console=console, refresh_per_second=4, transient=True) as display:
        while _refresh(runs):
            display.update(_table(list_runs(runs)))
            SYSTEM_CLOCK.sleep(every_s)


def _refresh(runs: Path | None) -> bool:
    """Fetch the state of every running job into its journal; False where no provider gave one."""
    refreshed = False
    for folder in [folder for folder, run in list_runs(runs) if _is_running(run)]:
        try:
            OpenAIFinetuneEngine.from_run(folder).get_current_job()
            refreshed = True
        except FinetuneStructuredError as error:  # its key is not set, or the provider has deleted the job
            say(f"{folder.name}: {error}")
    return refreshed


def _is_running(run: Run) -> bool:
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
        table.add_row(*(Text(one_line(cell), style=colour if cell is status else "") for cell in cells))
    return table


def register(app: typer.Typer) -> None:
    """Add the commands as ``jobs list``, ``jobs show``, ``jobs wait`` and ``jobs cancel``."""
    jobs = typer.Typer(help="Hosted fine-tuning runs: list, show, wait, cancel.", no_args_is_help=True)
    command(jobs, name="list", example="finetune-structured jobs list --live --every 30")(list_all)
    command(jobs, example="finetune-structured jobs show ftjob-abc123")(show)
    command(jobs, example="finetune-structured jobs wait ftjob-abc123 --timeout 3600")(wait)
    command(jobs, example="finetune-structured jobs cancel ftjob-abc123")(cancel)
    app.add_typer(jobs, name="jobs")
