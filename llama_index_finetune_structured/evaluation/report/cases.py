"""Side-by-side answers as HTML: question, gold, what each system said, differences marked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ...example import canonical_json
from ..score.rules import normal_text
from .table import percent

if TYPE_CHECKING:
    from ..score.metrics import ScoredAnswer
    from ..scorecard import Row, Scorecard

__all__ = ["cases_of", "worst_rows"]

_LONGEST_TEXT = 600


def worst_rows(card: Scorecard, main: str, count: int) -> list[Row]:
    """The rows that ``main`` answered worst; among equals those where the others did better."""

    def badness(row: Row) -> tuple[float, float]:
        best = max(answer.field_score for answer in row.answers.values())
        mine = row.answers[main].field_score
        return mine, mine - best

    return sorted(card.rows, key=badness)[:count]


def cases_of(card: Scorecard, main: str, count: int = 10) -> str:
    """The worst cases of ``main``, worst first, as a list of cards."""
    return "".join(_case(row, at) for at, row in enumerate(worst_rows(card, main, count), 1))


def _case(row: Row, at: int) -> str:
    about = f" · document {escape(row.document_id)}" if row.document_id else ""
    answers = "".join(_answer(name, answer, row.gold) for name, answer in row.answers.items())
    gold = f"<section class='answer gold'><h4>gold</h4>{_object(row.gold, None, {})}</section>"
    return (
        f"<article class='case'><h3>{at}. {escape(_cut(row.question, 300))}</h3>"
        f"<p class='quiet'>{escape(row.example_id[:12])}{about}</p>"
        f"<div class='answers'>{gold}{answers}</div></article>"
    )


def _answer(name: str, answer: ScoredAnswer, gold: Any) -> str:
    badge = (
        "exact"
        if answer.exact
        else f"{percent(answer.field_score)} of the fields"
        if answer.valid
        else "invalid"
    )
    kind = "good" if answer.exact else "part" if answer.valid else "bad"
    if answer.valid:
        right = {path: bool(score.right) for path, score in answer.fields.items()}
        body = _object(answer.value, gold, right)
    else:
        written = answer.raw_text if answer.raw_text is not None else answer.text
        body = f"<p class='error'>{escape(_cut(answer.error or '', 300))}</p>" + (
            f"<pre>{escape(_cut(written, _LONGEST_TEXT))}</pre>" if written else ""
        )
    hit = {True: "", None: "", False: "<p class='quiet'>retrieval missed the document</p>"}[
        answer.retrieval_hit
    ]
    bounds = (
        f"<p class='quiet'>bound hit: {escape(', '.join(answer.bound_hits))}</p>" if answer.bound_hits else ""
    )
    return (
        f"<section class='answer'><h4>{escape(name)} <span class='badge {kind}'>{badge}</span></h4>"
        f"{body}{hit}{bounds}</section>"
    )


def _object(value: Any, gold: Any, right: Mapping[str, bool], path: str = "") -> str:
    """Fields of an object, one a line; ``right`` empty: nothing is marked (the gold answer)."""
    if not isinstance(value, dict):
        return _value(value, gold, right, path or "answer")
    known = gold if isinstance(gold, dict) else {}
    lines = []
    for name, inner in value.items():
        below = f"{path}.{name}" if path else name
        nested = isinstance(inner, dict) and below not in right
        shown = _object(inner, known.get(name), right, below) if nested and right else None
        lines.append(
            f"<dt>{escape(name)}</dt><dd>{shown or _value(inner, known.get(name), right, below)}</dd>"
        )
    return f"<dl>{''.join(lines)}</dl>"


def _value(value: Any, gold: Any, right: Mapping[str, bool], path: str) -> str:
    if isinstance(value, list) or (isinstance(gold, list) and value is None):
        return _items(value or [], gold if isinstance(gold, list) else [], right.get(path))
    if right.get(path, True):
        return _mark("same" if path in right else "", value)
    if _absent(value):
        return _mark("missing", gold)
    return _mark("invented" if _absent(gold) else "wrong", value)


def _items(items: Sequence[Any], gold: Sequence[Any], right: bool | None) -> str:
    """A list's items; those gold does not have are marked, and those it lacks are shown."""
    if right is None or right:
        marks = [_mark("same" if right else "", item) for item in items]
    else:
        left = Counter(_canonical(item) for item in gold)
        marks = []
        for item in items:
            known = left[_canonical(item)] > 0
            left[_canonical(item)] -= known
            marks.append(_mark("same" if known else "wrong" if gold else "invented", item))
        for item in gold:
            if left[_canonical(item)] > 0:
                left[_canonical(item)] -= 1
                marks.append(_mark("missing", item))
    if not marks:
        return _mark("", None)
    # a small model may say a thing twenty times
    runs = [(mark, len(list(same))) for mark, same in groupby(marks)]
    return f"<ul>{''.join(f'<li>{mark}{_times(number)}</li>' for mark, number in runs)}</ul>"


def _times(number: int) -> str:
    return f" ×{number}" if number > 1 else ""


_SIGNS = {"same": "✓ ", "wrong": "✗ ", "invented": "✗ ", "missing": "– missing: ", "": ""}


def _mark(kind: str, value: Any) -> str:
    """A value with a sign and a colour, so that the colour is never the only difference."""
    spoken = {"same": "right", "wrong": "differs", "invented": "not in gold"}.get(kind)
    hidden = f"<span class='sr'>{spoken}: </span>" if spoken else ""
    sign = f"<span{' aria-hidden=true' if spoken else ''}>{_SIGNS[kind]}</span>" if kind else ""
    return f"<span class='mark {kind}'>{hidden}{sign}{escape(_cut(_shown(value), _LONGEST_TEXT))}</span>"


def _shown(value: Any) -> str:
    if _absent(value):
        return "(none)"
    if isinstance(value, dict) and all(not isinstance(v, dict | list) for v in value.values()):
        return ", ".join(f"{k}: {'(none)' if _absent(v) else v}" for k, v in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _absent(value: Any) -> bool:
    return value is None or value == [] or value == {} or (isinstance(value, str) and not value.strip())


def _canonical(value: Any) -> str:
    def normal(inner: Any) -> Any:
        if isinstance(inner, str):
            return normal_text(inner)
        if isinstance(inner, dict):
            return {key: normal(child) for key, child in inner.items()}
        return [normal(child) for child in inner] if isinstance(inner, list) else inner

    return canonical_json(normal(value))


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text) - longest} more characters)"
