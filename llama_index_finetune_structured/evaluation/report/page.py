"""The scorecard as one self-contained HTML page: no script, no font, no request; dark and narrow too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...llms.prices import Prices
from ..results import ScoreTable, main_system
from .cases import cases_of
from .charts import loss_curve, picture_of
from .costs import break_even
from .html_tables import (
    differences_table,
    field_tables,
    gap_table,
    metrics_table,
    retrieval_table,
    slice_tables,
)
from .markup import escape
from .style import STYLE
from .text import verdict_of
from .trust_section import trust_section

__all__ = ["facts_list", "html_document", "page_of", "section"]


def page_of(
    table: ScoreTable,
    title: str,
    training_log: Sequence[Mapping[str, Any]],
    prices: Prices | None,
) -> str:
    """The whole page; everything that came from data is escaped.

    ``training_log``: as in Scorecard.to_html, empty for no loss curve; ``prices``: None for no costs.
    """
    main = main_system(table)
    curve = loss_curve(training_log)
    sections = [
        section(
            "Before and after", f"<figure>{picture_of(table, own_background=False)}</figure>" + _WHISKERS
        ),
        section("Figures", metrics_table(table) + _LEGEND + (_NONE if table.refusals else "")),
        section("Field by field", field_tables(table)),
        section("How sure the answers are", trust_section(table)),
        section("Against the others", differences_table(table)),
        section("With and without the document among the retrieved", retrieval_table(table)),
        section("Training rows and held-out rows", gap_table(table)),
        section("Which answers are hard", slice_tables(table)),
        section("Training", f"<figure>{curve}</figure>" if curve else ""),
        section(
            "What it costs",
            # the time of failed calls is no cost of an answer
            f"<p>{escape(break_even(table, main, prices).sentence(main))}</p>"
            if prices and main not in table.unanswered
            else "",
        ),
        section(f"Answers side by side, the worst of “{main}” first", cases_of(table, main)),
        section("About this run", _facts(table)),
    ]
    return html_document(title, verdict_of(table), table.problems(), sections)


def html_document(title: str, verdict: str, problems: Sequence[str], sections: Iterable[str]) -> str:
    """A whole page; ``sections`` are HTML, all else is text."""
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        "<meta name='color-scheme' content='light dark'>"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<header><h1>{escape(title)}</h1><p class='verdict'>{escape(verdict)}</p>{_problems(problems)}</header>"
        f"{''.join(sections)}</main></body></html>\n"
    )


_WHISKERS = "<p class='quiet'>The line at the end of a bar is its 95% interval.</p>"
_LEGEND = (
    "<p class='quiet'>Time per answer: the whole run's time divided by its answers. Latency: the time that one "
    "call took, waiting for its turn in the batch included. Rates are over all examples; an invalid answer counts "
    "as wrong everywhere. Exact match: every field right. Field score: mean over the fields of right or wrong, a "
    "list by its F1. Lists: F1 over items, in any order. Text is compared after Unicode and white-space "
    "normalisation.</p>"
)


_NONE = "<p class='quiet'>“None”: the answer is null, or without any value, as of a text of another kind.</p>"


def _problems(problems: Sequence[str]) -> str:
    """What failed and why; empty where nothing did."""
    items = "".join(f"<li>{escape(problem)}</li>" for problem in problems)
    return f"<ul class='problems' aria-label='What failed'>{items}</ul>" if items else ""


def section(heading: str, body: str) -> str:
    """A section of the page, ``body`` as HTML; nothing without a body."""
    return f"<section><h2>{escape(heading)}</h2>{body}</section>" if body else ""


def _facts(table: ScoreTable) -> str:
    """The run in figures, and its settings."""
    gold_values = next(iter(table.systems.values())).fields
    facts: dict[str, Any] = {
        "examples": len(table.rows),
        "documents": len({row.document_id for row in table.rows if row.document_id}) or "unknown",
        "gold values": ", ".join(f"{path} {field.counts.gold}" for path, field in gold_values.items()),
        "created": table.created,
    } | table.settings
    return facts_list(facts)


def facts_list(facts: Mapping[str, Any]) -> str:
    """Names and values as a list."""
    return (
        "<dl class='facts'>"
        + "".join(f"<dt>{escape(str(key))}</dt><dd>{escape(str(value))}</dd>" for key, value in facts.items())
        + "</dl>"
    )
