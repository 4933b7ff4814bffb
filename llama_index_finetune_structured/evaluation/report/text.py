"""The score table in words: verdict, formatted rates, and a table for the terminal."""

from __future__ import annotations

import json
from typing import Any

from ...printable import one_line
from ..results import TEACHER, ScoreTable, main_system, references_of
from ..score.failures import failure_sentences
from ..score.intervals import Difference
from ..score.trust_figures import ACCURACY
from .terminal import FittedTable

__all__ = [
    "against_sentence",
    "headline_fields",
    "json_text",
    "percent",
    "signed",
    "sure_answers",
    "terminal_table",
    "verdict_of",
]

_FEW_DOCUMENTS = 5  # chosen: a bootstrap over fewer documents has few distinct resamples


def verdict_of(table: ScoreTable) -> str:
    """The best student against the first system and the teacher, by field score, with 95% intervals."""
    return one_line(_verdict_of(table))


def _verdict_of(table: ScoreTable) -> str:
    main = main_system(table)
    score = table.systems[main]
    if score.all_calls_failed:
        return f"There is no result: {main} gave no answer. {_reason(table, main)}"
    parts, silent = [], []
    for reference in references_of(table.systems):
        if reference in table.unanswered:
            silent.append(f" {reference} gave no answer to compare with. {_reason(table, reference)}")
        elif main not in (reference, TEACHER):
            parts.append(against_sentence(table.difference(main, reference), score.n))
    claim = f"{main} {'; it '.join(parts)}. " if parts else ""
    subject = "It" if claim else main
    valid, right = percent(score.schema_valid), percent(score.field_score)
    return (
        f"{claim}{subject} gives a valid answer in {valid} of {score.n} {'case' if score.n == 1 else 'cases'} "
        f"and gets {right} of the fields right.{sure_answers(table, main)}{_refusals(table, main)}"
        f"{_few_documents(table)}{''.join(silent)}"
    )


def sure_answers(table: ScoreTable, name: str) -> str:
    """A sentence on the answers that a system can give itself at 95% accuracy; empty where that is not known."""
    trust = table.trust.get(name)
    if trust is None:
        return ""
    share = trust.coverage.rate
    answers = f"it answers {percent(share)} itself" if share else "it could answer none itself"
    return f" Sure answers: at {percent(ACCURACY)} accuracy {answers} (held-out rows: {trust.n})."


def _refusals(table: ScoreTable, name: str) -> str:
    """A sentence on the rows whose answer is that there is none; empty without such rows."""
    score = table.refusals.get(name)
    if score is None:
        return ""
    wrongly = f", and wrongly for {score.said - score.right} of the {score.n - score.gold} others"
    return (
        f" Of {score.gold} texts of another kind it says so for {score.right}"
        f"{wrongly if score.n > score.gold else ''}."
    )


def _reason(table: ScoreTable, name: str) -> str:
    score = table.systems[name]
    sentence = failure_sentences(score.failures, score.n)[0]
    return f"{sentence[:1].upper()}{sentence[1:].rstrip('.')}."


def against_sentence(difference: Difference, n: int) -> str:
    """``beats base by 12 points (95% interval 3 to 21)``, on ``n`` examples."""
    points, low, high = (
        round(100 * rate) for rate in (difference.difference, difference.low, difference.high)
    )
    if not difference.is_clear:
        return (
            f"does not differ clearly from {difference.against} on these {n} examples "
            f"({signed(points)} points, 95% interval {signed(low)} to {signed(high)})"
        )
    if difference.difference > 0:
        return f"beats {difference.against} by {points} points (95% interval {low} to {high})"
    return f"is {-points} points behind {difference.against} (95% interval {-high} to {-low})"


def _few_documents(table: ScoreTable) -> str:
    """A warning where the rows come from few documents, since rows of one document are not independent."""
    documents = {row.document_id for row in table.rows}
    if None in documents or len(documents) >= min(_FEW_DOCUMENTS, len(table.rows)):
        return ""
    number = "one document" if len(documents) == 1 else f"{len(documents)} documents"
    return f" All examples are from {number}: too few for reliable intervals."


def percent(rate: float) -> str:
    """A rate as a whole percentage; never rounded up to 100 or down to 0."""
    if 0.99 < rate < 1 or 0 < rate < 0.01:
        return f"{rate:.1%}" if 0.0005 <= rate <= 0.9995 else (">99.9%" if rate > 0.5 else "<0.1%")
    return f"{rate:.0%}"


def signed(points: float) -> str:
    """Whole points with their sign: a true minus sign, and none for 0."""
    whole = round(points)
    return f"+{whole}" if whole > 0 else f"−{-whole}" if whole < 0 else "0"


def mean_text(mean: float | None, digits: int = 1) -> str:
    """A mean as text; a dash where it is unknown."""
    return "–" if mean is None else f"{mean:,.{digits}f}"


def terminal_table(table: ScoreTable) -> FittedTable:
    """One line per system: valid, exact, each field, tokens of reasoning where there are any, time per answer."""
    fields = headline_fields(table)
    reasons = any(score.reasoning_tokens for score in table.systems.values())
    rows = []
    for name, score in table.systems.items():
        rates = [score.schema_valid, score.exact_match, *(score.fields[path].headline for path in fields)]
        thought = (mean_text(score.reasoning_tokens),) if reasons else ()
        rows.append((name, *map(percent, rates), *thought, f"{score.seconds_per_answer:.1f} s"))
    more = ("reasoning tokens",) if reasons else ()
    headings = ("system", "valid", "exact", *fields.values(), *more, "time")
    return FittedTable(f"{len(table.rows)} examples", headings, tuple(rows))


def json_text(data: dict[str, Any]) -> str:
    """The data as JSON, a line for each row of a list and each other entry; half surrogate pairs as "?".

    Indented throughout, a large scorecard took a minute and twice the room. Parsers refuse half a pair.
    """
    entries = [f"{_json(key)}: {_json_lines(value)}" for key, value in data.items()]
    return "{\n" + ",\n".join(entries).encode("utf-8", "replace").decode() + "\n}\n"


def _json_lines(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(map(_json, value)) + "\n]"
    return _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def headline_fields(table: ScoreTable) -> dict[str, str]:
    """Path -> label with its measure, of the fields of the answer itself, without the parts of list items."""
    first = next(iter(table.systems.values()))
    return {
        path: path if field.f1 is None else f"{path} F1"
        for path, field in first.fields.items()
        if "[]" not in path
    }
