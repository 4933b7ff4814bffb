"""``finetune-structured report``: a saved scorecard as table and page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..evaluation import Scorecard
from .command import Result, command
from .scores import score_result
from .trained import loss_curve_of

__all__ = ["register"]


def report(
    scorecard: Annotated[Path, typer.Argument(help="A scorecard.json that eval, demo or compare() saved.")],
    html: Annotated[
        Path | None, typer.Option(help="Where the page goes (else report.html beside the scorecard).")
    ] = None,
    title: Annotated[str, typer.Option(help="The page's heading.")] = "Scorecard",
) -> Result:
    """Show a saved scorecard as a table, and write its page again. Nothing is asked or trained."""
    card = Scorecard.from_json(scorecard)
    page = html or scorecard.with_name("report.html")
    card.to_html(page, title=title, training_log=loss_curve_of(card.settings.get("run")))
    return score_result(card, scorecard=scorecard, report=page)


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, example="finetune-structured report eval-output/scorecard.json --title 'Citations, week 3'")(
        report
    )
