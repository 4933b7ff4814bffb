"""The ``report`` command: a saved scorecard as a table and an HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigurationError
from ..evaluation import Prices, Scorecard
from .command import Result, command, finite
from .scores import score_result
from .trained import loss_curve_of, training_of

__all__ = ["register"]


def report(
    scorecard: Annotated[
        Path, typer.Argument(help="A scorecard.json of eval, demo or compare(), or its folder.")
    ],
    html: Annotated[
        Path | None, typer.Option(help="File of the page (default: report.html beside the scorecard).")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the report (default: the stored one).")] = None,
    input_price: Annotated[
        float | None,
        typer.Option(min=0, callback=finite, help="The teacher's price of a million input tokens."),
    ] = None,
    output_price: Annotated[
        float | None,
        typer.Option(min=0, callback=finite, help="The teacher's price of a million output tokens."),
    ] = None,
    machine_price: Annotated[
        float, typer.Option(min=0, callback=finite, help="Price of an hour of your machine.")
    ] = 0.0,
    training_cost: Annotated[
        float | None,
        typer.Option(
            min=0, callback=finite, help="Total cost of tuning, if the scorecard's training run is not known."
        ),
    ] = None,
) -> Result:
    """Show a saved scorecard as a table and write its page again, without running any model.

    With the teacher's prices it also computes after how many queries the tuned
    model is cheaper, from captured token counts and measured times.
    """
    scorecard = scorecard / "scorecard.json" if scorecard.is_dir() else scorecard
    card = Scorecard.from_json(scorecard)
    run = card.settings.get("run")
    prices = _prices(card, input_price, output_price, machine_price, training_cost)
    page = html or scorecard.with_name("report.html")
    if page.resolve() == scorecard.resolve():
        raise ConfigurationError(
            f"{page}: is the scorecard, which the page would replace; give another --html"
        )
    card.to_html(
        page,
        title=title or str(card.settings.get("title", "Scorecard")),
        training_log=loss_curve_of(run),
        prices=prices,
    )
    return score_result(card, scorecard=scorecard, report=page, prices=prices)


def _prices(
    card: Scorecard,
    input_price: float | None,
    output_price: float | None,
    machine_price: float,
    training_cost: float | None,
) -> Prices | None:
    if input_price is None and output_price is None:
        return None
    if input_price is None or output_price is None:
        raise ConfigurationError(
            "one of the teacher's two prices is missing: give both --input-price and --output-price"
        )
    if training_cost is not None:
        return Prices(input_price, output_price, machine_price, training_cost=training_cost)
    training = training_of(card.settings.get("run"))
    if training is None:
        raise ConfigurationError(
            "the cost of tuning is not known: the scorecard names no training run, or its folder is gone; "
            "give it with --training-cost (0 if there was none)"
        )
    hours, examples = training
    answers = examples + len(card.rows)  # the teacher gave the held-out answers as well
    return Prices(input_price, output_price, machine_price, training_hours=hours, training_examples=answers)


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(
        app,
        example="finetune-structured report eval-output/scorecard.json --input-price 2 --output-price 8",
    )(report)
