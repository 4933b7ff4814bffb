"""The typer application with all commands, and the entry point."""

from __future__ import annotations

import io
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from . import build, check, demo, evaluate, export, jobs, report, train

__all__ = ["app", "main"]

app = typer.Typer(
    help="Fine-tune small language models for structured answers in LlamaIndex.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(is_set: bool) -> None:
    if is_set:
        typer.echo(f"finetune-structured {version('llama-index-finetune-structured')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Options before the command."""


for module in (demo, build, check, train, evaluate, report, export, jobs):
    module.register(app)


def main() -> None:
    """Entry point of the ``finetune-structured`` script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal's encoding may lack a character
    app()
