"""The ``report`` command: a saved scorecard, of answers or of agents, as a table and an HTML page."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigurationError
from ..evaluation import AgentScorecard, Prices, Scorecard
from .command import Result, command, finite
from .scores import agent_score_result, score_result
from .trained import loss_curve_of, training_of

__all__ = ["register"]


def report(
    scorecard: Annotated[
        Path,
        typer.Argument(help="A scorecard.json of eval, demo, compare() or compare_agents(), or its folder."),
    ],
    html: Annotated[
        Path | None, typer.Option(help="File of the page (default: report.html beside the scorecard).")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the report (default: the stored one).")] = None,
    errors: Annotated[
        Path | None, typer.Option(help="Also write the wrong fields to this CSV file, for a spreadsheet.")
    ] = None,
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
    card = _read(scorecard)
    page = html or scorecard.with_name("report.html")
    if page.resolve() == scorecard.resolve():
        raise ConfigurationError(
            f"{page}: is the scorecard, which the page would replace; give another --html"
        )
    if isinstance(card, AgentScorecard):
        given = (errors, input_price, output_price, training_cost)
        if any(value is not None for value in given) or machine_price:
            raise ConfigurationError(
                f"{scorecard}: is a scorecard of agents, which has no wrong fields and no prices; leave --errors and "
                "the prices out"
            )
        card.to_html(page, title=title or str(card.settings.get("title", "Agents")))
        return agent_score_result(card, scorecard=scorecard, report=page)
    run = card.settings.get("run")
    prices = _prices(card, input_price, output_price, machine_price, training_cost)
    card.to_html(
        page,
        title=title or str(card.settings.get("title", "Scorecard")),
        training_log=loss_curve_of(run),
        prices=prices,
    )
    if errors is not None:
        card.save_errors(errors)
    return score_result(card, scorecard=scorecard, report=page, prices=prices, errors=errors)


def _read(path: Path) -> Scorecard | AgentScorecard:
    """The scorecard of either kind. Raises ConfigurationError for a file that is none, in the words of the first."""
    try:
        return Scorecard.from_json(path)
    except ConfigurationError as error:
        with suppress(ConfigurationError):
            return AgentScorecard.from_json(path)
        raise error


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
