"""The page's tables, as HTML: figures, fields, differences, retrieval, gap, slices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..results import ScoreTable
from ..score.intervals import Difference
from ..score.metrics import Interval, Metrics, SystemScore
from .gap import gaps
from .markup import escape
from .slices import slices
from .text import headline_fields, mean_text, percent, signed

__all__ = [
    "differences_table",
    "field_tables",
    "gap_table",
    "html_table",
    "metrics_table",
    "rate_with_interval",
    "retrieval_table",
    "signed_interval",
    "slice_tables",
]

_MOST_DOCUMENTS = 10  # chosen: the hardest ones; all of them could fill pages
_DASH = "\u2060–\u2060"  # no line break before or after it
_RATES = {"schema_valid": "schema valid", "exact_match": "exact match", "field_score": "field score"}


def metrics_table(table: ScoreTable) -> str:
    """One line per figure, one column per system: rates with intervals, time, errors, bound hits, retries.

    The systems are few and the figures many: a line per system would be wider than a page.
    """
    scores = table.systems.values()
    rows = [
        ["examples", *(str(score.n) for score in scores)],
        *([label, *(_with_interval(score, metric) for score in scores)] for metric, label in _RATES.items()),
        *_refusal_rows(table),
        ["seconds per answer", *(f"{score.seconds_per_answer:.2f}" for score in scores)],
        ["median latency, s", *(f"{score.median_latency_s:.2f}" for score in scores)],
        ["invalid by kind", *(_by_kind(score) for score in scores)],
        ["bound hits", *(str(score.bound_hits) for score in scores)],
        ["retried", *(str(score.retries) for score in scores)],
    ]
    if any(score.reasoning_tokens for score in scores):
        rows.append(
            ["reasoning tokens a call", *(mean_text(score.reasoning_tokens) for score in scores)],
        )
    return html_table(["figure", *table.systems], rows, "All systems on the same examples")


def _refusal_rows(table: ScoreTable) -> list[list[str]]:
    """Precision and recall of “of another kind”, where gold has such rows."""
    scores = [table.refusals[name] for name in table.systems if name in table.refusals]
    if not scores:
        return []
    precisions = (_DASH if score.precision is None else percent(score.precision) for score in scores)
    return [
        [
            "“none” precision",
            *(f"{rate} of {score.said}" for rate, score in zip(precisions, scores, strict=True)),
        ],
        ["“none” recall", *(f"{percent(score.recall)} of {score.gold}" for score in scores)],
    ]


def _by_kind(score: SystemScore) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in score.errors.items()) or "none"


def field_tables(table: ScoreTable) -> str:
    """One small table per field."""
    tables = []
    for path, first in next(iter(table.systems.values())).fields.items():
        rows = []
        for name, score in table.systems.items():
            field = score.fields[path]
            errors = map(percent, (field.wrong, field.missing, field.invented))
            rows.append([name, _with_interval(score, f"fields.{path}"), *errors])
        measure = "F1" if first.f1 is not None else "accuracy"
        headings = ["system", measure, "wrong", "missing", "invented"]
        tables.append(f"<div><h3>{escape(path)}</h3>{html_table(headings, rows, path)}</div>")
    return f"<div class='fields'>{''.join(tables)}</div>" + (
        "<p class='quiet'>Wrong and missing: share of the gold values; invented: share of the answered "
        "values. “list[].part”: that part of the list's items, once the items are matched.</p>"
    )


def differences_table(table: ScoreTable) -> str:
    """Every system minus the first one, and minus the teacher, but for systems that gave no answer."""
    differences = {(d.system, d.against, d.metric): d for d in table.differences}
    pairs = [
        pair
        for pair in dict.fromkeys((d.system, d.against) for d in table.differences)
        if not {*pair} & {*table.unanswered}
    ]
    rows = [
        [
            f"{system} − {against}",
            *(signed_interval(differences[system, against, metric]) for metric in _RATES),
        ]
        for system, against in pairs
    ]
    headings = ["points (95% interval)", *_RATES.values()]
    return html_table(headings, rows, "Differences on the same examples") if rows else ""


def retrieval_table(table: ScoreTable) -> str:
    """The figures of rows with and without the gold document among the retrieved."""
    rows = []
    paths = list(headline_fields(table))
    for name, score in table.systems.items():
        for label, part in (("found", score.retrieval_hit), ("missed", score.retrieval_miss)):
            if part is not None:
                rows.append([name, label, *_short(part, paths)])
    headings = ["system", "gold document", "n", "schema valid", "exact match", *paths]
    return html_table(headings, rows, "By retrieval") if rows else ""


def gap_table(table: ScoreTable) -> str:
    """Field score on training rows and held-out rows."""
    rows = [
        [
            name,
            percent(gap.train),
            percent(gap.held_out),
            _signed_interval(gap.gap, gap.low, gap.high),
            "yes, training rows are memorised" if gap.is_flagged else "not clear",
        ]
        for name, gap in gaps(table).items()
    ]
    headings = [
        "system",
        "training rows",
        "held-out rows",
        "gap, points (95% interval)",
        "sign of overfitting",
    ]
    return html_table(headings, rows, "Training and held-out rows") if rows else ""


def slice_tables(table: ScoreTable) -> str:
    """Field score by length of the gold answer, and by document where documents have several rows."""
    html = _slice_table(table, slices(table, "answer_length"), "gold answer")
    documents = slices(table, "document")
    if 1 < len(documents) < len(table.rows):
        hardest = sorted(documents, key=lambda name: min(m.field_score for m in documents[name].values()))
        html += _slice_table(table, {name: documents[name] for name in hardest[:_MOST_DOCUMENTS]}, "document")
    return f"{html}<p class='quiet'>Field score of each system.</p>"


def _slice_table(table: ScoreTable, parts: Mapping[str, Mapping[str, Metrics]], label: str) -> str:
    rows = [
        [
            name,
            str(next(iter(part.values())).n),
            *(percent(part[system].field_score) for system in table.systems),
        ]
        for name, part in parts.items()
    ]
    return html_table([label, "n", *table.systems], rows, f"Field score by {label}")


def _short(part: Metrics, paths: Sequence[str]) -> list[str]:
    rates = [percent(part.schema_valid), percent(part.exact_match)]
    return [str(part.n), *rates, *(percent(part.fields[path].headline) for path in paths)]


def _with_interval(score: SystemScore, metric: str) -> str:
    return rate_with_interval(score.intervals[metric])


def rate_with_interval(interval: Interval) -> str:
    """``81% (70–90)``."""
    return f"{percent(interval.rate)} ({100 * interval.low:.0f}{_DASH}{100 * interval.high:.0f})"


def signed_interval(difference: Difference) -> str:
    """``+12 (+3 to +21)``, in points."""
    return _signed_interval(difference.difference, difference.low, difference.high)


def _signed_interval(rate: float, low: float, high: float) -> str:
    return f"{signed(100 * rate)} ({signed(100 * low)} to {signed(100 * high)})"


def html_table(headings: Iterable[str], rows: Iterable[Sequence[str]], label: str) -> str:
    """A table whose first column names the row; cells are text; ``label``: for screen readers."""
    head = "".join(f"<th scope='col'>{escape(heading)}</th>" for heading in headings)
    body = "".join(
        f"<tr><th scope='row'>{escape(row[0])}</th>"
        + "".join(f"<td>{escape(c)}</td>" for c in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f"<div class='scroll' role='region' aria-label='{escape(label)}' tabindex='0'><table>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
