"""The ``eval`` command: base and tuned model on the same held-out rows, scored field by field."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..dataset import FinetuneDataset
from ..errors import ConfigurationError
from ..evaluation import Scorecard, compare
from ..example import content_hash
from ..llms.lora import LoraLLM
from ..locks import locked_folder
from ..tuning.run import base_of
from .command import Result, command, counted, say
from .schema_option import SchemaOption, answer_class
from .scores import score_result
from .trained import Trained, find_trained, loss_curve_of

__all__ = ["register"]


def evaluate(
    model: Annotated[str, typer.Argument(help="Folder of a training run or an adapter, or a base model.")],
    data: Annotated[Path, typer.Argument(help="Held-out examples, such as data.validation.jsonl.")],
    output: Annotated[Path, typer.Option(help="Folder for scorecard.json and report.html.")] = Path(
        "eval-output"
    ),
    base: Annotated[bool, typer.Option(help="Also evaluate the base model.")] = True,
    base_model: Annotated[
        str | None, typer.Option(help="Location of the base model, if it moved after training.")
    ] = None,
    grammar: Annotated[
        bool, typer.Option(help="Constrain answers to their schema during generation.")
    ] = True,
    answers: Annotated[
        int, typer.Option(min=1, help="Answers to each question, merged into one by votes.")
    ] = 1,
    windows: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Read texts in windows of so many sentences; 0: whole (default: as the model was trained).",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers generated in one batch.")] = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="Evaluate only the first N examples.")] = None,
    schema: SchemaOption = None,
    title: Annotated[str, typer.Option(help="Title of the report.")] = "Before and after",
    errors: Annotated[
        Path | None, typer.Option(help="Also write the wrong fields to this CSV file, for a spreadsheet.")
    ] = None,
) -> Result:
    """Send the examples' messages to the models, score every field against their answers, write a report.

    Answers are stored as they arrive, so the same command generates only the
    missing ones. With --schema an answer is valid if the class accepts it, and
    both sides are compared as the class writes them. The exit code is 1 if
    every call to a model failed.
    """
    examples = FinetuneDataset(list(FinetuneDataset.load(data))[:limit])
    trained = find_trained(model)
    named = "" if trained is None else ", ".join(trained.card.answer_classes.values())
    output_cls = answer_class(schema, data, hint=named or "FILE.py:Class")
    merged = {"answers": answers} | ({} if windows is None else {"windows": windows})
    options = {"constrained": grammar, "batch_size": batch_size, **merged}
    systems = (
        _systems(trained, base, base_model, options) if trained else {"base": _base_only(model, options)}
    )
    run = str(trained.run.resolve()) if trained and trained.run else None
    settings = {
        "title": title,
        "model": model,
        "run": run,
        "data": str(data),
        "grammar": grammar,
        "answers": answers,
        "windows": windows,
        "limit": limit,
        "schema": None if output_cls is None else schema or output_cls.__name__,
    }
    training_log = loss_curve_of(run)  # a damaged one is an error before answers are generated
    with locked_folder(output):
        _require_same_evaluation(output / "scorecard.json", settings)
        say(f"{counted(len(examples), 'example')}, {counted(len(systems), 'model')}")
        card = compare(
            systems,
            examples,
            output_cls=output_cls,
            concurrency=batch_size,
            cache_dir=output / "answers" / _answers_key(trained, systems, grammar, merged),
            notes={key: value for key, value in settings.items() if value is not None},
        )
        page = output / "report.html"
        scorecard = card.to_json(output / "scorecard.json")
        card.to_html(page, title=title, training_log=training_log)
        if errors is not None:
            card.save_errors(errors)
    return score_result(card, scorecard=scorecard, report=page, errors=errors)


def _base_only(model: str, options: dict[str, Any]) -> LoraLLM:
    try:
        return LoraLLM(base_model=model, **options)
    except ConfigurationError as error:
        raise ConfigurationError(f"{model}: not a training run or adapter; {error}") from error


def _systems(
    trained: Trained, base: bool, base_model: str | None, options: dict[str, Any]
) -> dict[str, LoraLLM]:
    """The tuned model and, unless ``base`` is False, its base model with the same settings."""
    moved = {} if base_model is None else {"base_model": base_model}
    tuned = LoraLLM.from_adapter(trained.adapter, **options, **moved)
    if not base:
        return {"tuned": tuned}
    return {"base": base_of(tuned), "tuned": tuned}


def _require_same_evaluation(scorecard: Path, settings: dict[str, Any]) -> None:
    """Raise ConfigurationError where ``scorecard`` is of another evaluation, which it would overwrite."""
    if not scorecard.exists():
        return
    stored = Scorecard.from_json(scorecard).settings
    changed = [
        name for name in settings if name not in ("title", "run") and stored.get(name) != settings[name]
    ]
    if changed:
        raise ConfigurationError(
            f"{scorecard}: holds an evaluation with another {', '.join(changed)} and is not overwritten; give "
            "another --output"
        )


def _answers_key(
    trained: Trained | None, systems: dict[str, LoraLLM], grammar: bool, merged: dict[str, int]
) -> str:
    """Cache key of stored answers: another training in the same folder, or another mode, has its own."""
    model = trained.card.fingerprint if trained else systems["base"].base_model
    return content_hash([model, grammar, merged])[:12]


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(
        app, name="eval", example="finetune-structured eval model data.validation.jsonl --output eval-output"
    )(evaluate)
