"""All commands together, and the entry point."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from . import build, check, demo, evaluate, export, report, train
from .jobs import app as jobs

__all__ = ["app", "main"]

app = typer.Typer(
    help="Make small, owned language models give reliable structured answers inside LlamaIndex.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"finetune-structured {version('llama-index-finetune-structured')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """What comes before a command."""


for part in (demo, build, check, train, evaluate, report, export):
    part.register(app)
app.add_typer(jobs, name="jobs")


def main() -> None:
    """Entry point: a user's mistake is one clear line, not a traceback."""
    app()
