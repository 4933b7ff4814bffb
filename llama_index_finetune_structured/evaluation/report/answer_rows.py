"""The answers of a comparison as rows of a table: for pandas, and the wrong ones as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from typing import Any

from ...example import canonical_json
from ..results import ScoredRow, ScoreTable
from ..score.answers import FieldScore
from ..score.metrics import ScoredAnswer

__all__ = ["ANSWER_COLUMNS", "ERROR_COLUMNS", "answer_rows", "errors_csv"]

ANSWER_COLUMNS = (
    "example_id", "document_id", "split", "question", "system", "valid", "exact", "field_score", "gold", "answer",
    "error_kind", "error", "seconds", "retries", "reasoning_tokens", "probability",
)  # fmt: skip
ERROR_COLUMNS = (
    "example_id", "document_id", "question", "system", "field", "kind", "gold", "answer", "error", "probability",
)  # fmt: skip
_WHOLE = "answer"  # the field's path where the answer has no fields of its own
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")


def answer_rows(table: ScoreTable) -> Iterator[dict[str, Any]]:
    """One row for each example and system, with its figures; ``right.<field>``: whether a field is right."""
    for row in table.rows:
        for system, answer in row.answers.items():
            right = {f"right.{path}": bool(score.right) for path, score in answer.fields.items()}
            yield {
                "example_id": row.example_id,
                "document_id": row.document_id,
                "split": row.split,
                "question": row.question,
                "system": system,
                "valid": answer.valid,
                "exact": answer.exact,
                "field_score": answer.field_score,
                "gold": row.gold,
                "answer": answer.value if answer.valid else answer.text,
                "error_kind": answer.error_kind,
                "error": answer.error,
                "seconds": answer.seconds,
                "retries": answer.retries,
                "reasoning_tokens": answer.reasoning_tokens,
                "probability": _probability(answer),
                **right,
            }


def errors_csv(table: ScoreTable) -> str:
    """The wrong fields of all systems as CSV, one a line; of an invalid answer, or a failed call, one line alone.

    No cell is a formula for a spreadsheet: those that begin like one, and are no number, get an apostrophe.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(ERROR_COLUMNS)
    for row in table.rows:
        for system, answer in row.answers.items():
            for field, kind, gold, given in _errors(row, answer):
                cells = [row.example_id, row.document_id, row.question, system, field, kind, gold, given]
                writer.writerow(map(_cell, [*cells, answer.error, _probability(answer)]))
    return out.getvalue()


def _errors(row: ScoredRow, answer: ScoredAnswer) -> Iterator[tuple[str, str, Any, Any]]:
    """Field, kind of error, and both values; the parts of list items are in the list itself."""
    if not answer.valid:
        yield "", "failed" if answer.call_failed else "invalid", row.gold, answer.text
        return
    for path, score in answer.fields.items():
        if not score.right and "[]" not in path:
            yield path, _kind(score), _value(row.gold, path), _value(answer.value, path)


def _kind(score: FieldScore) -> str:
    if score.gold and not score.answered:
        return "missing"
    return "invented" if score.answered and not score.gold else "wrong"


def _value(answer: Any, path: str) -> Any:
    """The value at a field's path, whose keys may have dots themselves."""
    if not isinstance(answer, dict):
        return answer if path == _WHOLE else None
    if path in answer:
        return answer[path]
    for at in (at for at, character in enumerate(path) if character == "."):
        if path[:at] in answer:
            found = _value(answer[path[:at]], path[at + 1 :])
            if found is not None:
                return found
    return answer if path == _WHOLE else None


def _probability(answer: ScoredAnswer) -> float | None:
    return None if answer.trust is None else answer.trust.probability


def _cell(value: Any) -> str:
    """A value as a cell: text as it is, other values as JSON."""
    text = "" if value is None else value if isinstance(value, str) else canonical_json(value)
    text = text.encode("utf-8", "replace").decode()  # half a surrogate pair
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text
