"""The ``export`` command: a trained model for other servers, with a check that it answers alike."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import RenderableType

from ..dataset import FinetuneDataset
from ..errors import ConfigurationError
from ..evaluation.export_parity import Parity, parity
from ..example import Example
from ..llms.exported import open_export
from ..llms.lora import LoraLLM
from ..local.export import FORMATS, export_adapter
from ..local.export.serving import serving_commands
from ..local.model.adapter import find_adapter, read_card
from .command import Result, command, one_of
from .schema_option import SchemaOption, answer_class

__all__ = ["export", "register"]

_DTYPES = "; ".join(f"{name}: {', '.join(dtypes)}" for name, dtypes in FORMATS.items())


def export(
    model: Annotated[Path, typer.Argument(help="Folder of a training run, or of its adapter.")],
    output: Annotated[Path, typer.Argument(help="Folder (merged) or .gguf file to write; must not exist.")],
    format: Annotated[
        str, typer.Option(callback=one_of(*FORMATS), help=f"One of {', '.join(FORMATS)}.")
    ] = "merged",
    dtype: Annotated[
        str | None,
        typer.Option(
            callback=one_of(*sorted({*chain(*FORMATS.values())})),
            help=f"Data type of the weights, the default first. {_DTYPES}.",
        ),
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Location of the base model, if it moved after training.")
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(help="Examples on which adapter and export must agree, else exit code 1."),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the model on the servers.")] = "tuned",
    schema: SchemaOption = None,
) -> Result:
    """Write a trained model for vLLM, SGLang, llama.cpp or Ollama, and print how to serve it.

    merged: a transformers folder. gguf: one file. gguf-adapter: the LoRA weights alone, for llama.cpp's --lora
    on top of gguf-base, the base model alone. With --check the adapter and what was written get the same
    prompts, and their answers are compared field by field.
    """
    if schema is not None and check is None:
        raise ConfigurationError("--schema judges the answers of --check: give --check FILE, or leave it out")
    adapter = find_adapter(model)
    read_card(adapter)  # a damaged adapter is an error before the examples are read
    examples = (
        None if check is None else list(FinetuneDataset.load(check))
    )  # an error before anything is written
    output_cls = None if check is None else answer_class(schema, check)
    if examples is not None and format == "gguf-base":
        raise ConfigurationError("--check compares the trained model; gguf-base holds only the base model")
    export_adapter(adapter, output, format=format, dtype=dtype, base_model=base_model)
    size = sum(file.stat().st_size for file in (output, *output.rglob("*")) if file.is_file())
    data: dict[str, Any] = {"output": str(output), "format": format, "bytes": size}
    shown: list[RenderableType] = [f"{output}: {format}, {size / 1e6:,.1f} MB"]
    if format in ("merged", "gguf"):
        commands = serving_commands(output, name=name)
        data["serve"] = {server: str(line) for server, line in commands.items()}
        shown += [f"To serve with {server}: {line}" for server, line in commands.items()]
    if examples is None:
        return Result(data, tuple(shown))
    result = _parity(adapter, output, format, base_model, examples, output_cls)
    data["parity"] = result.model_dump(mode="json", exclude={"answers"}) | {
        "failures": result.failures,
        "problems": result.problems(),
    }
    return Result(data, (*shown, result.table(), result.verdict(), *result.problems()), ok=result.passed)


def _parity(
    adapter: Path,
    output: Path,
    format: str,
    base_model: str | None,
    examples: list[Example],
    output_cls: type[BaseModel] | None,
) -> Parity:
    """Compare the answers of the export with those of the adapter it was made from."""
    moved = {} if base_model is None else {"base_model": base_model}
    with open_export(output, adapter, format=format, base_model=base_model) as llm:
        tuned = LoraLLM.from_adapter(adapter, **moved)
        return parity(tuned, examples, {format: llm}, output_cls=output_cls)


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, example="finetune-structured export model tuned.gguf --format gguf")(export)
