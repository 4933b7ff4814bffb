"""How sure the answers are, as HTML: figures, reliability diagrams, risk-coverage curves, fields."""

from __future__ import annotations

from ..results import ScoreTable
from ..score.metrics import Interval
from ..score.trust_figures import ACCURACY, TrustScore
from .charts import colour, coverage_curve, reliability_diagram
from .html_tables import html_table
from .markup import escape
from .text import percent

__all__ = ["trust_section"]

_NOTE = (
    "<p class='quiet'>Each probability comes from a calibration that was fitted on other rows of this scorecard. "
    "AUROC: how often a right answer is surer than a wrong one. Calibration error: mean distance between probability and "
    "share of right answers, over at most 15 bins of equal size with at least 20 answers each; “by chance”: what "
    "exact probabilities would show on as many answers. Sure answers: the greatest share of the answers, the surest "
    f"ones, of which {percent(ACCURACY)} are right. In brackets and as bands: 95% intervals.</p>"
)


def trust_section(table: ScoreTable) -> str:
    """Of every system with probabilities; empty where none has any."""
    if not table.trust:
        return ""
    systems = [
        (name, table.trust[name], colour(at)) for at, name in enumerate(table.systems) if name in table.trust
    ]
    charts = "".join(
        f"<div><h3>{escape(name)}</h3><figure>{reliability_diagram(score.bins, stroke)}</figure>"
        f"<figure>{coverage_curve(score.curve, stroke)}</figure></div>"
        for name, score, stroke in systems
    )
    fields = "".join(_fields(name, score) for name, score, _ in systems)
    return f"{_figures(table)}<div class='fields'>{charts}</div>{fields}{_NOTE}"


def _figures(table: ScoreTable) -> str:
    scores = table.trust.values()
    rows = [
        ["answers with a probability", *(str(score.n) for score in scores)],
        ["right", *(percent(score.right) for score in scores)],
        ["AUROC", *(_auroc(score.auroc) for score in scores)],
        ["calibration error (by chance)", *(f"{s.calibration_error:.3f} ({s.chance:.3f})" for s in scores)],
        [f"sure answers at {percent(ACCURACY)} accuracy", *(_share(score.coverage) for score in scores)],
    ]
    return html_table(["figure", *table.trust], rows, "How sure the answers are")


def _auroc(rate: Interval | None) -> str:
    return "–" if rate is None else f"{rate.rate:.3f} ({rate.low:.2f} to {rate.high:.2f})"


def _share(rate: Interval) -> str:
    return f"{percent(rate.rate)} ({percent(rate.low)} to {percent(rate.high)})"


def _fields(name: str, score: TrustScore) -> str:
    rows = [
        [
            path or "answer",
            str(field.n),
            percent(field.right),
            "–" if field.auroc is None else f"{field.auroc:.3f}",
            f"{field.calibration_error:.3f}",
        ]
        for path, field in score.fields.items()
    ]
    headings = [name, "values", "right", "AUROC", "calibration error"]
    return html_table(headings, rows, f"How sure the values of {name} are") if rows else ""
