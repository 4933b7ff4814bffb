"""The scorecard as one self-contained HTML page: no script, no font, no request; dark and narrow too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from .cases import cases_of
from .charts import loss_curve, picture_of
from .html_tables import (
    differences_table,
    field_tables,
    gap_table,
    metrics_table,
    retrieval_table,
    slice_tables,
)
from .style import STYLE
from .verdict import main_system, verdict_of

if TYPE_CHECKING:
    from ..scorecard import Scorecard
    from .costs import Prices

__all__ = ["page_of"]


def page_of(
    card: Scorecard,
    title: str,
    training_log: Sequence[Mapping[str, Any]],
    prices: Prices | None,
) -> str:
    """The whole page; everything that came from data is escaped."""
    main = main_system(card)
    curve = loss_curve(training_log)
    sections = [
        _section(
            "Before and after", f"<figure>{picture_of(card, own_background=False)}</figure>" + _WHISKERS
        ),
        _section("Figures", metrics_table(card) + _LEGEND),
        _section("Field by field", field_tables(card)),
        _section("Against the others", differences_table(card)),
        _section("Where retrieval found the document, and where not", retrieval_table(card)),
        _section("Training rows and held-out rows", gap_table(card)),
        _section("Which answers are hard", slice_tables(card)),
        _section("Training", f"<figure>{curve}</figure>" if curve else ""),
        _section("What it costs", f"<p>{escape(_cost(card, main, prices))}</p>" if prices else ""),
        _section(f"Answers side by side, the worst of “{main}” first", cases_of(card, main)),
        _section("How this was made", _facts(card)),
    ]
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        "<meta name='color-scheme' content='light dark'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<header><h1>{escape(title)}</h1><p class='verdict'>{escape(verdict_of(card))}</p></header>"
        f"{''.join(sections)}</main></body></html>\n"
    )


_WHISKERS = "<p class='quiet'>The line at the end of a bar is its 95% interval.</p>"
_LEGEND = (
    "<p class='quiet'>Time per answer is the whole run's over its answers; latency is what one caller waited, its turn "
    "in the batch included. Rates over all examples; an invalid answer counts as wrong everywhere. Exact match: "
    "every field right. Field score: mean over the fields of right or wrong, a list by its F1. Lists: F1 "
    "over items, in any order. Text is compared after Unicode and white-space normalisation.</p>"
)


def _section(heading: str, body: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{body}</section>" if body else ""


def _cost(card: Scorecard, main: str, prices: Prices) -> str:
    return card.break_even(main, prices).sentence(main)


def _facts(card: Scorecard) -> str:
    gold_values = next(iter(card.systems.values())).fields
    facts: dict[str, Any] = {
        "examples": len(card.rows),
        "documents": len({row.document_id for row in card.rows if row.document_id}) or "unknown",
        "gold values": ", ".join(f"{path} {field.counts.gold}" for path, field in gold_values.items()),
        "made": card.created,
    } | card.settings
    return (
        "<dl class='facts'>"
        + "".join(f"<dt>{escape(str(key))}</dt><dd>{escape(str(value))}</dd>" for key, value in facts.items())
        + "</dl>"
    )
