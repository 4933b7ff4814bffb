"""Side-by-side answers as HTML: question, gold and each system's answer, with differences marked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from ...example import canonical_json
from ...trust.calibration import field_name
from ...trust.json_spans import JsonPath
from ..results import ScoredRow, ScoreTable
from ..score.metrics import ScoredAnswer
from ..score.rules import normal_text
from .markup import escape
from .text import percent
from .trust_notes import TrustNotes, evidenced_fields

__all__ = ["cases_of", "cut_text", "mark", "marked_object"]

_CASES = 10  # chosen: as many as are read
_VALUE_CHARACTERS, _LINE_CHARACTERS = 600, 300  # chosen: a value or raw text; a question or error


def _worst_rows(table: ScoreTable, main: str) -> list[ScoredRow]:
    """The rows that ``main`` answered worst; among equals those where the others did better."""

    def badness(row: ScoredRow) -> tuple[float, float]:
        best = max(answer.field_score for answer in row.answers.values())
        score = row.answers[main].field_score
        return score, score - best

    return sorted(table.rows, key=badness)[:_CASES]


def cases_of(table: ScoreTable, main: str) -> str:
    """The worst answers of ``main`` beside the others', worst first."""
    found = {name: evidenced_fields(row.answers[name] for row in table.rows) for name in table.systems}
    return "".join(_case(row, at, found) for at, row in enumerate(_worst_rows(table, main), 1))


def _case(row: ScoredRow, at: int, found: Mapping[str, frozenset[str]]) -> str:
    about = f" · document {escape(row.document_id)}" if row.document_id else ""
    answers = "".join(
        _answer(name, answer, row.gold, TrustNotes(answer.trust, found[name]))
        for name, answer in row.answers.items()
    )
    gold = f"<section class='answer gold'><h4>gold</h4>{marked_object(row.gold, None, {}, TrustNotes())}</section>"
    return (
        f"<article class='case'><h3>{at}. {escape(cut_text(row.question, _LINE_CHARACTERS))}</h3>"
        f"<p class='quiet'>{escape(row.example_id[:12])}{about}</p>"
        f"<div class='answers'>{gold}{answers}</div></article>"
    )


def _answer(name: str, answer: ScoredAnswer, gold: Any, notes: TrustNotes) -> str:
    """One system's answer with its badge; an invalid one with its error and raw text."""
    kind, badge = "bad", "invalid"
    if answer.valid:
        kind, badge = "part", f"{percent(answer.field_score)} of the fields"
    if answer.exact:
        kind, badge = "good", "exact"
    if answer.valid:
        right = {path: bool(score.right) for path, score in answer.fields.items()}
        body = marked_object(answer.value, gold, right, notes)
    else:
        raw = answer.text if answer.raw_text is None else answer.raw_text
        body = f"<p class='error'>{escape(cut_text(answer.error or '', _LINE_CHARACTERS))}</p>" + (
            f"<pre>{escape(cut_text(raw, _VALUE_CHARACTERS))}</pre>" if raw else ""
        )
    if answer.retrieval_hit is False:
        body += "<p class='quiet'>the document was not retrieved</p>"
    for problem in answer.problems:
        body += f"<p class='error'>{escape(cut_text(problem, _LINE_CHARACTERS))}</p>"
    if answer.bound_hits:
        body += f"<p class='quiet'>bound hit: {escape(', '.join(answer.bound_hits))}</p>"
    heading = f"<h4>{escape(name)} <span class='badge {kind}'>{badge}</span>{notes.of_answer()}</h4>"
    return f"<section class='answer'>{heading}{body}</section>"


def marked_object(
    value: Any, gold: Any, right: Mapping[str, bool], notes: TrustNotes, place: JsonPath = ()
) -> str:
    """Fields of an object, one per line; ``right``: field path -> whether it is right, empty to mark nothing."""
    if not isinstance(value, dict):
        return _value(value, gold, right, notes, place)
    known = gold if isinstance(gold, dict) else {}
    lines = []
    for name, inner in value.items():
        below = (*place, name)
        nested = isinstance(inner, dict) and field_name(below) not in right
        shown = marked_object(inner, known.get(name), right, notes, below) if nested and right else None
        lines.append(
            f"<dt>{escape(name)}</dt><dd>{shown or _value(inner, known.get(name), right, notes, below)}</dd>"
        )
    return f"<dl>{''.join(lines)}</dl>"


def _value(value: Any, gold: Any, right: Mapping[str, bool], notes: TrustNotes, place: JsonPath) -> str:
    """One field's value, marked as right, wrong, missing or invented."""
    path = field_name(place) or "answer"
    if isinstance(value, list) or (isinstance(gold, list) and value is None):
        return _items(value or [], gold if isinstance(gold, list) else [], right.get(path), notes, place)
    note = notes.of(place)
    if right.get(path, True):
        return mark("same" if path in right else "", value) + note
    if _absent(value):
        return mark("missing", gold) + note
    return mark("invented" if _absent(gold) else "wrong", value) + note


def _items(
    items: Sequence[Any], gold: Sequence[Any], right: bool | None, notes: TrustNotes, place: JsonPath
) -> str:
    """A list's items; where the list is not ``right``, the items that gold lacks and those missing are marked."""
    known = notes.of_items(place, len(items))
    if right is None or right:
        marks = [mark("same" if right else "", item) for item in items]
    else:
        left = Counter(_canonical(item) for item in gold)
        marks = []
        for item in items:
            is_known = left[_canonical(item)] > 0
            left[_canonical(item)] -= is_known
            marks.append(mark("same" if is_known else "wrong" if gold else "invented", item))
        for item in gold:
            if left[_canonical(item)] > 0:
                left[_canonical(item)] -= 1
                marks.append(mark("missing", item))
    if not marks:
        return mark("", None) + notes.of(place)
    # a small model may repeat an item many times; the first one's note stands for all
    noted = zip(marks, [*known, *[""] * (len(marks) - len(known))], strict=True)
    runs = [list(same) for _, same in groupby(noted, key=itemgetter(0))]
    return f"<ul>{''.join(f'<li>{run[0][0]}{_times(len(run))}{run[0][1]}</li>' for run in runs)}</ul>"


def _times(number: int) -> str:
    return f" ×{number}" if number > 1 else ""


_SIGNS = {"same": "✓ ", "wrong": "✗ ", "invented": "✗ ", "missing": "– missing: ", "": ""}


def mark(kind: str, value: Any) -> str:
    """A value with a sign and a colour, so that the colour is never the only difference."""
    spoken = {"same": "right", "wrong": "differs", "invented": "not in gold"}.get(kind)
    hidden = f"<span class='sr'>{spoken}: </span>" if spoken else ""
    sign = f"<span{' aria-hidden=true' if spoken else ''}>{_SIGNS[kind]}</span>" if kind else ""
    return (
        f"<span class='mark {kind}'>{hidden}{sign}{escape(cut_text(_shown(value), _VALUE_CHARACTERS))}</span>"
    )


def _shown(value: Any) -> str:
    """A value as text: a flat object as "name: value" pairs, other structures as JSON."""
    if _absent(value):
        return "(none)"
    if isinstance(value, dict) and all(not isinstance(v, dict | list) for v in value.values()):
        return ", ".join(f"{k}: {'(none)' if _absent(v) else v}" for k, v in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _absent(value: Any) -> bool:
    return value is None or value == [] or value == {} or (isinstance(value, str) and not value.strip())


def _canonical(value: Any) -> str:
    """The value as canonical JSON with normalised texts, for comparing items."""

    def normal(inner: Any) -> Any:
        if isinstance(inner, str):
            return normal_text(inner)
        if isinstance(inner, dict):
            return {key: normal(child) for key, child in inner.items()}
        return [normal(child) for child in inner] if isinstance(inner, list) else inner

    return canonical_json(normal(value))


def cut_text(text: str, longest: int) -> str:
    """The text, of at most so many characters and the number of the others."""
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text) - longest} more characters)"
