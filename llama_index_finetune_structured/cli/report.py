"""``finetune-structured report``: a saved scorecard as table and page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigurationError
from ..evaluation import Prices, Scorecard
from .command import Result, command
from .scores import score_result
from .trained import loss_curve_of, training_of

__all__ = ["register"]


def report(
    scorecard: Annotated[
        Path, typer.Argument(help="A scorecard.json that eval, demo or compare() saved, or its folder.")
    ],
    html: Annotated[
        Path | None, typer.Option(help="Where the page goes (else report.html beside the scorecard).")
    ] = None,
    title: Annotated[str | None, typer.Option(help="The page's heading (else the one it had).")] = None,
    input_price: Annotated[
        float | None, typer.Option(min=0, help="The teacher's price of a million tokens in.")
    ] = None,
    output_price: Annotated[float | None, typer.Option(min=0, help="And of a million tokens out.")] = None,
    machine_price: Annotated[float, typer.Option(min=0, help="What an hour of your machine costs.")] = 0.0,
    training_cost: Annotated[
        float | None,
        typer.Option(min=0, help="All that tuning cost, where the scorecard's run does not tell."),
    ] = None,
) -> Result:
    """Show a saved scorecard as a table, and write its page again. Nothing is asked or trained.

    With the teacher's prices: after how many queries the student has paid for
    itself, from captured token use and measured times.
    """
    scorecard = scorecard / "scorecard.json" if scorecard.is_dir() else scorecard
    card = Scorecard.from_json(scorecard)
    run = card.settings.get("run")
    prices = _prices(card, input_price, output_price, machine_price, training_cost)
    page = html or scorecard.with_name("report.html")
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
        raise ConfigurationError("the teacher has two prices: give both --input-price and --output-price")
    if training_cost is not None:
        return Prices(input_price, output_price, machine_price, training_cost=training_cost)
    training = training_of(card.settings.get("run"))
    if training is None:
        raise ConfigurationError(
            "what tuning cost is not known: the scorecard names no training run, or its folder is gone; "
            "give it with --training-cost (0 where it cost nothing)"
        )
    hours, examples = training
    bought = examples + len(card.rows)  # the held-out answers are the teacher's, too
    return Prices(input_price, output_price, machine_price, training_hours=hours, training_examples=bought)


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(
        app,
        example="finetune-structured report eval-output/scorecard.json --input-price 2 --output-price 8",
    )(report)
