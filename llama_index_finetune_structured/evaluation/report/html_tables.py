"""The tables of the page, as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from .table import headline_fields, percent
from .verdict import signed

if TYPE_CHECKING:
    from ..score.intervals import Difference
    from ..score.metrics import Metrics, SystemScore
    from ..scorecard import Scorecard

__all__ = [
    "differences_table",
    "field_tables",
    "gap_table",
    "metrics_table",
    "retrieval_table",
    "slice_tables",
]

_MOST_DOCUMENTS = 10


def metrics_table(card: Scorecard) -> str:
    """One line per system: the rates with their intervals, time, errors, bound hits, retries."""
    rows = [
        [
            name,
            str(score.n),
            *(_with_interval(score, metric) for metric in ("schema_valid", "exact_match", "field_score")),
            f"{score.seconds_per_answer:.2f}",
            f"{score.median_latency_s:.2f}",
            ", ".join(f"{kind} {count}" for kind, count in score.errors.items()) or "none",
            str(score.bound_hits),
            str(score.retries),
        ]
        for name, score in card.systems.items()
    ]
    headings = [
        "system",
        "n",
        "schema valid",
        "exact match",
        "field score",
        "s per answer",
        "median latency, s",
    ]
    headings += ["invalid by kind", "bound hits", "asked again"]
    return _table(headings, rows, "All systems on the same examples")


def field_tables(card: Scorecard) -> str:
    """One small table per field."""
    tables = []
    for path, first in next(iter(card.systems.values())).fields.items():
        rows = []
        for name, score in card.systems.items():
            field = score.fields[path]
            fates = map(percent, (field.wrong, field.missing, field.invented))
            rows.append([name, _with_interval(score, f"fields.{path}"), *fates])
        measure = "F1" if first.f1 is not None else "accuracy"
        headings = ["system", measure, "wrong", "missing", "invented"]
        tables.append(f"<div><h3>{escape(path)}</h3>{_table(headings, rows, path)}</div>")
    return f"<div class='fields'>{''.join(tables)}</div>" + (
        "<p class='quiet'>Wrong and missing: share of the gold values; invented: share of the answered "
        "values. “list[].part”: that part of the list's items, once the items are matched.</p>"
    )


def differences_table(card: Scorecard) -> str:
    """Every system less the first one, and less the teacher."""
    metrics = ("schema_valid", "exact_match", "field_score")
    found = {(d.system, d.against, d.metric): d for d in card.differences}
    pairs = dict.fromkeys((d.system, d.against) for d in card.differences)
    rows = [
        [f"{system} − {against}", *(_points(found[system, against, metric]) for metric in metrics)]
        for system, against in pairs
    ]
    headings = ["points (95% interval)", "schema valid", "exact match", "field score"]
    return _table(headings, rows, "Differences on the same examples") if rows else ""


def retrieval_table(card: Scorecard) -> str:
    """The figures apart for rows where retrieval gave the gold document and where it did not."""
    rows = []
    paths = headline_fields(card)
    for name, score in card.systems.items():
        for label, part in (("found", score.retrieval_hit), ("missed", score.retrieval_miss)):
            if part is not None:
                rows.append([name, label, *_short(part, paths)])
    headings = ["system", "gold document", "n", "schema valid", "exact match", *paths]
    return _table(headings, rows, "By retrieval") if rows else ""


def gap_table(card: Scorecard) -> str:
    """Field score on training rows and held-out rows."""
    rows = [
        [
            name,
            percent(gap.train),
            percent(gap.held_out),
            _signed_interval(gap.gap, gap.low, gap.high),
            "learned by heart" if gap.is_flagged else "none that is clear",
        ]
        for name, gap in card.gaps().items()
    ]
    headings = [
        "system",
        "training rows",
        "held-out rows",
        "gap, points (95% interval)",
        "sign of overfitting",
    ]
    return _table(headings, rows, "Training and held-out rows") if rows else ""


def slice_tables(card: Scorecard) -> str:
    """Field score by length of the gold answer, and by document where documents have several rows."""
    out = _slices(card, card.slices("answer_length"), "gold answer")
    documents = card.slices("document")
    if 1 < len(documents) < len(card.rows):
        hardest = sorted(documents, key=lambda name: min(m.field_score for m in documents[name].values()))
        out += _slices(card, {name: documents[name] for name in hardest[:_MOST_DOCUMENTS]}, "document")
    return f"{out}<p class='quiet'>Field score of each system.</p>"


def _slices(card: Scorecard, slices: Mapping[str, Mapping[str, Metrics]], label: str) -> str:
    rows = [
        [
            name,
            str(next(iter(part.values())).n),
            *(percent(part[system].field_score) for system in card.systems),
        ]
        for name, part in slices.items()
    ]
    return _table([label, "n", *card.systems], rows, f"Field score by {label}")


def _short(part: Metrics, paths: Sequence[str]) -> list[str]:
    rates = [percent(part.schema_valid), percent(part.exact_match)]
    return [str(part.n), *rates, *(percent(part.fields[path].headline) for path in paths)]


def _with_interval(score: SystemScore, metric: str) -> str:
    found = score.intervals[metric]
    return f"{percent(found.rate)} ({100 * found.low:.0f}–{100 * found.high:.0f})"


def _points(found: Difference) -> str:
    return _signed_interval(found.difference, found.low, found.high)


def _signed_interval(rate: float, low: float, high: float) -> str:
    return f"{signed(100 * rate)} ({signed(100 * low)} to {signed(100 * high)})"


def _table(headings: Iterable[str], rows: Iterable[Sequence[str]], label: str) -> str:
    """A table whose first column names the row; cells are text; ``label`` is read aloud."""
    head = "".join(f"<th scope='col'>{escape(heading)}</th>" for heading in headings)
    body = "".join(
        f"<tr><th scope='row'>{escape(row[0])}</th>"
        + "".join(f"<td>{escape(c)}</td>" for c in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f"<div class='scroll' role='region' aria-label='{escape(label, quote=True)}' tabindex='0'><table>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
