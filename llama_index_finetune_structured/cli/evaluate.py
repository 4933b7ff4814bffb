"""``finetune-structured eval``: base and tuned model on the same rows, field by field."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..dataset import FinetuneDataset
from ..errors import ConfigurationError
from ..evaluation import Scorecard, compare
from ..example import content_hash
from ..llms.lora import LoraLLM
from .command import Result, command, say
from .scores import score_result
from .trained import Trained, find_trained, loss_curve_of

__all__ = ["register"]


def evaluate(
    model: Annotated[str, typer.Argument(help="A train folder or adapter; or a base model, asked alone.")],
    data: Annotated[Path, typer.Argument(help="Held-out examples, such as data.validation.jsonl.")],
    output: Annotated[Path, typer.Option(help="Folder of scorecard.json and report.html.")] = Path(
        "eval-output"
    ),
    base: Annotated[bool, typer.Option(help="Ask the base model too.")] = True,
    base_model: Annotated[
        str | None, typer.Option(help="Where the base model is, if it moved after training.")
    ] = None,
    grammar: Annotated[
        bool, typer.Option(help="Hold answers to their schema while they are written.")
    ] = True,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers generated together.")] = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many examples.")] = None,
    title: Annotated[str, typer.Option(help="The page's heading.")] = "Before and after",
) -> Result:
    """Ask the examples' own messages, score every field against the kept answers, write table and page.

    Answers are kept as they come in: the same command asks only what is missing.
    """
    examples = FinetuneDataset(list(FinetuneDataset.load(data))[:limit])
    trained = find_trained(model)
    options = {"constrained": grammar, "batch_size": batch_size}
    systems = _systems(trained, base, base_model, options) if trained else {"base": _alone(model, options)}
    run = str(trained.run.resolve()) if trained and trained.run else None
    settings = {
        "title": title,
        "model": model,
        "run": run,
        "data": str(data),
        "grammar": grammar,
        "limit": limit,
    }
    _refuse_another(output / "scorecard.json", settings)
    say(f"{len(examples)} examples, {len(systems)} models")
    card = compare(
        systems,
        examples,
        concurrency=batch_size,
        cache_dir=output / "answers" / _mark(trained, systems, grammar),
        notes={key: value for key, value in settings.items() if value is not None},
    )
    page = output / "report.html"
    scorecard = card.to_json(output / "scorecard.json")
    card.to_html(page, title=title, training_log=loss_curve_of(run))
    return score_result(card, scorecard=scorecard, report=page)


def _alone(model: str, options: dict[str, Any]) -> LoraLLM:
    try:
        return LoraLLM(base_model=model, **options)
    except ConfigurationError as error:
        raise ConfigurationError(f"{model}: no training run and no adapter; {error}") from error


def _systems(
    trained: Trained, base: bool, base_model: str | None, options: dict[str, Any]
) -> dict[str, LoraLLM]:
    """The tuned model and, asked in the same way, its base."""
    moved = {} if base_model is None else {"base_model": base_model}
    tuned = LoraLLM.from_adapter(trained.adapter, **options, **moved)
    if not base:
        return {"tuned": tuned}
    same = tuned.model_dump(
        include={"base_model", "max_new_tokens", "batch_size", "chat_prompts", "constrained"}
    )
    return {"base": LoraLLM(**same, bounds=tuned.bounds), "tuned": tuned}


def _refuse_another(scorecard: Path, settings: dict[str, Any]) -> None:
    """The same evaluation may replace its page, another one may not."""
    if not scorecard.exists():
        return
    found = Scorecard.from_json(scorecard).settings
    other = [name for name in ("model", "data", "grammar", "limit") if found.get(name) != settings[name]]
    if other:
        raise ConfigurationError(
            f"{scorecard}: of an evaluation with another {', '.join(other)}, and not overwritten; give another "
            "--output"
        )


def _mark(trained: Trained | None, systems: dict[str, LoraLLM], grammar: bool) -> str:
    """Kept answers are those of this training and this way of asking, not of another in the same place."""
    model = trained.card.fingerprint if trained else systems["base"].base_model
    return content_hash([model, grammar])[:12]


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(
        app, name="eval", example="finetune-structured eval model data.validation.jsonl --output eval-output"
    )(evaluate)
