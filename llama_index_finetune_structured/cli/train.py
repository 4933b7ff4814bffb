"""The ``train`` command: LoRA fine-tuning on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel

from ..dataset import FinetuneDataset
from ..dataset.schema.load import load_schema
from ..engines.lora import LoraFinetuneEngine
from ..engines.start_adapter import REPLAY_SHARE
from ..errors import DatasetError
from ..local.model.prompts import SchemaPrompt, ToolPrompt
from ..local.model.quantization import Quantization
from ..local.model.reasoning import Thinking
from ..local.train.settings import LoraSettings
from ..tuning.rows import FEW_ROWS
from .command import Result, command, counted, finite, say, settings_of
from .schema_option import TrainSchemaOption

__all__ = ["register"]

_DEFAULT = LoraSettings()


def train(
    data: Annotated[
        Path, typer.Argument(help="Training file, such as build writes, or another that check accepts.")
    ],
    base_model: Annotated[
        str | None,
        typer.Option(
            help="Base model: a folder, a .gguf file or a hub id (default: that of --start-from, else the embedded "
            "one)."
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder of the run, which will contain the adapter.")] = Path(
        "model"
    ),
    validation: Annotated[
        Path | None, typer.Option(help="File of held-out rows for the validation loss.")
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Passes over the data (default: from 5 for few rows to 1 for many)."),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            min=1e-8, callback=finite, help="Peak learning rate (default: by the size of the model)."
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Examples in a step (default: 2 to 4, by their length)."),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            callback=finite,
            help="Most minutes of training; fewer steps are taken (default: no limit).",
        ),
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of the adapter (default: 16).")] = None,
    upper_layers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Train only the top N layers (default: all; the embedded model has 30): the backward pass ends there, "
            "so a step takes less time and memory; fewer layers learn less, by how much depends on the task: "
            "compare with eval.",
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Maximum tokens in a row; longer rows are an error (default: the base model's context window).",
        ),
    ] = None,
    schema_prompt: Annotated[
        SchemaPrompt | None,
        typer.Option(
            help="How prompts say the schema: json, compact (as types, half of the tokens) or none (default: none from "
            "100 rows of one schema on, else compact)."
        ),
    ] = None,
    tool_prompt: Annotated[
        ToolPrompt | None,
        typer.Option(
            help="How agents' tools and calls are written: own (as the base model's chat template does) or json "
            "(default: own where the template has a form that can be read back)."
        ),
    ] = None,
    thinking: Annotated[
        Thinking | None,
        typer.Option(
            help="Whether the reasoning of answers is trained and written before them: keep, or drop (default)."
        ),
    ] = None,
    quantization: Annotated[
        Quantization | None,
        typer.Option(
            help="Hold the base's layers in 4 bits a weight (nf4) or in 8 (int8), with the extra 'quantized' "
            "(default: as they are)."
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Where to train: cpu, cuda:1, or auto for all GPUs (default: the best device)."),
    ] = None,
    report_to: Annotated[
        list[str] | None,
        typer.Option(help="Log losses to tensorboard, wandb, mlflow or trackio too; give it once for each."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of order and initial weights.")] = _DEFAULT.seed,
    schema: TrainSchemaOption = None,
    start_from: Annotated[
        Path | None,
        typer.Option(help="Go on from the adapter in this folder, or of this run, on the same base."),
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option(help="File of the rows of that adapter (default: train.jsonl of its run, if any)."),
    ] = None,
    replay_share: Annotated[
        float,
        typer.Option(min=0, max=0.99, callback=finite, help="Share of old rows among those trained on."),
    ] = REPLAY_SHARE,
    rejects: Annotated[
        Path | None,
        typer.Option(
            help="File of rejected answers to prompts of the data, over which its answers are to be preferred (DPO)."
        ),
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            callback=finite,
            help="How close preferences stay to the model that training began with (default: 0.1).",
        ),
    ] = None,
) -> Result:
    """Fine-tune a base model with LoRA on the answers, with checkpoints. Needs the extra 'local'.

    Ctrl-C finishes the current step and saves a checkpoint; the same command
    resumes from it, and shows a finished run.
    """
    given = {"rank": rank, "thinking": thinking, "beta": beta}
    settings = settings_of(
        LoraSettings,
        **{name: value for name, value in given.items() if value is not None},
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        minutes=minutes,
        upper_layers=upper_layers,
        max_length=max_length,
        schema_prompt=schema_prompt,
        tool_prompt=tool_prompt,
        seed=seed,
        quantization=quantization,
        device=device,
        report_to=report_to or (),
    )
    output_cls = None if schema is None else load_schema(schema)
    engine = LoraFinetuneEngine(
        _rows(data, output_cls, schema),
        base_model=base_model,
        validation=None if validation is None else _rows(validation, output_cls, schema),
        output_dir=output,
        config=settings,
        start_from=start_from,
        replay=replay,
        replay_share=replay_share,
        rejects=rejects,
    )
    if (rows := len(engine.examples)) < FEW_ROWS:
        say(f"only {counted(rows, 'example')}: enough to learn the form of an answer, hardly the task")
    engine.finetune()
    job = engine.get_current_job()
    held_out = "" if job.validation_loss is None else f", {job.validation_loss:.3f} on held-out rows"
    shown = f"{job.steps} steps in {job.seconds:.0f} s, loss {job.loss:.3f}{held_out} -> {job.adapter}"
    return Result(job.model_dump(mode="json"), (shown,))


def _rows(data: Path, output_cls: type[BaseModel] | None, schema: str | None) -> Path | FinetuneDataset:
    """The file or, with the class of ``--schema``, its rows as the class writes them.

    Raises DatasetError for a row that the class refuses.
    """
    if output_cls is None:
        return data
    found = FinetuneDataset.load(data).revalidate(output_cls)
    if found.lost:
        first = found.lost[0]
        raise DatasetError(
            f"{data}: {schema} refuses the answers of {counted(len(found.lost), 'row')} of "
            f"{len(found.lost) + len(found.examples)}; the first, row {first.row + 1}: {first.reason}. "
            f"'check --schema {schema} --fix FILE' lists them and writes the others"
        )
    return FinetuneDataset(found.examples)


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(
        app,
        example="finetune-structured train data.jsonl --validation data.validation.jsonl --epochs 2 --output model",
    )(train)
