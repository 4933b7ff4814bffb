"""``finetune-structured export``: a trained model for other servers, and whether it answers alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..local.export import FORMATS
from .command import Result, command
from .exporting import export_and_check

__all__ = ["register"]


def export(
    model: Annotated[Path, typer.Argument(help="A run's output folder, or its adapter folder.")],
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
) -> Result:
    """Write a trained model for vLLM, SGLang, llama.cpp or Ollama, and print how to serve it.

    merged: a transformers folder. gguf: one file. gguf-adapter: the LoRA weights alone, for llama.cpp's --lora
    on top of gguf-base. With --check both are asked the same prompts and compared field by field.
    """
    found = export_and_check(
        model, output, format=format, dtype=dtype, base_model=base_model, check=check, name=name
    )
    return Result(found.data, tuple(found.shown), found.ok)


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, example="finetune-structured export lora-output/3f2a1b tuned.gguf --format gguf")(export)
