"""The typer application with all commands, and the entry point."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..printable import printable
from . import build, check, demo, evaluate, export, improve, jobs, report, select, serve, train, tune

__all__ = ["app", "main"]


@contextlib.contextmanager
def _printable_errors() -> Iterator[None]:
    """Errors of reading the command line name what was typed, which may be a file's name."""
    try:
        yield
    except Exception as error:
        message = getattr(error, "message", None)  # of click's errors; typer names no class for all of them
        if isinstance(message, str):
            error.__dict__["message"] = printable(message)
        raise


class _Commands(TyperGroup):
    """All commands; what they and their options refuse is shown without control characters."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the options before the command."""
        with _printable_errors():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Read the command with its options and run it."""
        with _printable_errors():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
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


for module in (demo, build, tune, improve, check, train, evaluate, select, report, export, jobs, serve):
    module.register(app)


def main() -> None:
    """Entry point of the ``finetune-structured`` script."""
    if not re.fullmatch("[1-9][0-9]*", os.environ.get("COLUMNS", "")):
        os.environ.pop("COLUMNS", None)  # rich shows nothing in 0 columns, and fails at a number such as "²"
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed before the start
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for the life of the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal's encoding may lack a character
    try:
        app()
    except OSError as error:  # commands tell those of files; a closed pipe ends quietly
        reason = error.strerror or error
        sys.exit(
            f"Error: the result could not be printed ({reason}); free disk space, or send the output elsewhere"
        )
