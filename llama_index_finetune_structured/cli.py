"""finetune-structured: the loop from the shell."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .engines.jobs import app as jobs
from .errors import FinetuneStructuredError
from .lora.base_models import DEFAULT_BASE_MODEL

__all__ = ["app", "main"]

app = typer.Typer(
    help="Make small, owned language models give reliable structured answers inside LlamaIndex.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(jobs, name="jobs")
_console = Console()
_errors = Console(stderr=True)


@app.callback()
def _root() -> None:
    """Commands of llama-index-finetune-structured."""


@app.command(
    epilog="Example: finetune-structured demo --train-size 120 --test-size 40 --seed 1 --output demo-seed-1"
)
def demo(
    output: Annotated[Path, typer.Option(help="Folder that everything lands in.")] = Path("demo-output"),
    train_size: Annotated[int, typer.Option(min=4, help="Questions the teacher answers.")] = 160,
    test_size: Annotated[int, typer.Option(min=1, help="Held-out questions.")] = 40,
    seed: Annotated[int, typer.Option(help="Decides split, order and initial weights.")] = 0,
    base_model: Annotated[
        str, typer.Option(help="Embedded default, folder, .gguf file or hub id.")
    ] = DEFAULT_BASE_MODEL,
    teacher: Annotated[
        str | None, typer.Option(help="A hosted model ($OPENAI_API_KEY); without it a docstring parser.")
    ] = None,
    api_base: Annotated[str | None, typer.Option(help="Where the teacher is served.")] = None,
) -> None:
    """Distil a teacher into a small model on the documentation of networkx, and score both.

    Needs no key, GPU or hub. A run that was stopped goes on where it was; a finished one is shown again.
    """
    from .demo.run import DemoSettings, run

    settings = DemoSettings(
        train_size=train_size,
        test_size=test_size,
        seed=seed,
        base_model=base_model,
        teacher=teacher,
        api_base=api_base,
    )
    card = run(settings, output, _console.print)
    card.print()
    _console.print(f"Report: {output / 'report.html'}   figures: {output / 'scorecard.json'}")


def main() -> None:
    """Entry point: a user's mistake is one clear line, not a traceback."""
    try:
        app()
    except FinetuneStructuredError as error:
        _errors.print(f"Error: {error}", style="red", markup=False)
        sys.exit(1)
    except KeyboardInterrupt:
        _errors.print("Stopped. What was finished is kept: run the same command again to go on.")
        sys.exit(130)


if __name__ == "__main__":
    main()
