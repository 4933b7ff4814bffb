"""finetune-structured: the loop from the shell."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .engines.jobs import app as jobs
from .errors import FinetuneStructuredError
from .lora.base_models import DEFAULT_BASE_MODEL
from .lora.export import FORMATS

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
    train_size: Annotated[int, typer.Option(min=4, help="Questions the teacher answers.")] = 184,
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


@app.command(
    epilog="Example: finetune-structured export model tuned.gguf --format gguf --check held-out.jsonl"
)
def export(
    model: Annotated[Path, typer.Argument(help="A finished run's folder, or its adapter.")],
    output: Annotated[
        Path, typer.Argument(help="The folder (merged) or .gguf file to write; must not exist.")
    ],
    format: Annotated[str, typer.Option(help=f"One of {', '.join(FORMATS)}.")] = "merged",
    dtype: Annotated[str | None, typer.Option(help="The weights' type, such as f16 or q8_0.")] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Where the base model is, if it moved after training.")
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(help="Examples that adapter and export must answer alike, else exit code 1."),
    ] = None,
    name: Annotated[str, typer.Option(help="What servers shall call the model.")] = "tuned",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Write a trained model for vLLM, SGLang, llama.cpp or Ollama, and print how to serve it.

    merged: a transformers folder. gguf: one file. gguf-adapter: the LoRA weights alone, for llama.cpp's --lora
    on top of gguf-base. With --check both are asked the same prompts and compared field by field.
    """
    from .evaluation.exporting import export_and_check

    found = export_and_check(
        model, output, format=format, dtype=dtype, base_model=base_model, check=check, name=name
    )
    if as_json:
        typer.echo(json.dumps(found.data, ensure_ascii=False, indent=1))
    else:
        for part in found.shown:
            _console.print(part, markup=False, highlight=False, soft_wrap=isinstance(part, str))
    if not found.ok:
        raise typer.Exit(1)


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
