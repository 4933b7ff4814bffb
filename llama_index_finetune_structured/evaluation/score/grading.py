"""Validates a raw answer and scores it against the gold answer of its example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...capture.error_text import error_text
from ...errors import ConfigurationError, StructuredAnswerError
from ...example import Example, canonical_json
from ...printable import one_line
from ..run.answer_log import RawAnswer
from ..run.kept_trust import KeptTrust
from ..run.target import AnswerTarget
from .answers import FieldScore, score_answer
from .failures import INVALID
from .fields import Field, fields_of, inferred_schema
from .judging import judged_trust
from .metrics import ScoredAnswer
from .rules import Rules, as_rule

__all__ = ["FieldPlan", "grade"]


class FieldPlan:
    """The fields in which each target's answers are scored, and the kind of every field.

    ``rules``: by field path, before what the schema's types suggest. ``kinds``: field path -> "value", "text" or
    "list". Raises ConfigurationError for an unknown comparison and for a rule of a field that no schema has.
    """

    def __init__(self, targets: Sequence[AnswerTarget], rules: Rules | None) -> None:
        self._rules = {path: as_rule(rule) for path, rule in (rules or {}).items()}
        self._by_schema: dict[str, tuple[Field, ...]] = {}
        self._inferred = inferred_schema([target.gold for target in targets if target.schema is None])
        self.kinds: dict[str, str] = {}
        for target in targets:
            for field in self.fields(target):
                self.kinds[field.path] = field.kind
                self.kinds |= {part.path: _part_kind(part) for part in field.items if part.keys}
        unknown = [
            path for path, rule in self._rules.items() if path not in self.kinds and rule.compare != "ignore"
        ]
        if unknown:
            raise ConfigurationError(
                f"fields: no field {', '.join(map(repr, unknown))}; there are: {one_line(', '.join(self.kinds))}"
            )

    def fields(self, target: AnswerTarget) -> tuple[Field, ...]:
        """The fields of one target; equal schemas are flattened once."""
        schema = self._inferred if target.schema is None else target.schema
        key = canonical_json(schema)
        if key not in self._by_schema:
            self._by_schema[key] = fields_of(schema, self._rules)
        return self._by_schema[key]


def _part_kind(part: Field) -> str:
    """A part of list items is summed over the items, so its figure is an F1 too."""
    return "text" if part.kind == "text" else "list"


def grade(answer: RawAnswer, target: AnswerTarget, plan: FieldPlan) -> ScoredAnswer:
    """One answer, validated and scored in every field; one that failed or does not fit scores 0."""
    value, error, kind = None, answer.error, answer.error_kind
    given = answer.text if answer.value is None else answer.value
    problems: tuple[str, ...] = ()
    if error is None:
        try:
            value = target.read(given)
            problems = target.problems(given)
        except StructuredAnswerError as unfit:
            error, kind = str(unfit), INVALID
        except Exception as broken:  # a validator of the user's class may raise anything
            error, kind = error_text(broken) or "(no message)", type(broken).__name__
    valid = error is None
    fields = plan.fields(target)
    scores = score_answer(fields, target.gold, value, valid)
    own = [scores[field.path] for field in fields]  # without the parts of list items
    points = [_points(field, score) for field, score in zip(fields, own, strict=True)]
    return ScoredAnswer(
        valid=valid,
        exact=valid and all(score.right for score in own),
        field_score=sum(points) / len(points) if valid and points else 0.0,
        fields=scores,
        value=value,
        text=answer.text,
        raw_text=answer.raw_text,
        error=error,
        error_kind=kind,
        call_failed=answer.failed,
        retrieval_hit=_retrieval_hit(target.example, answer),
        sources=answer.sources,
        bound_hits=answer.bound_hits,
        retries=answer.retries,
        seconds=answer.seconds,
        trust=_judged(answer, target, fields, value) if valid else answer.trust,
        problems=_problems(answer.trust, problems) if valid else (),
    )


def _problems(trust: KeptTrust | None, found: tuple[str, ...]) -> tuple[str, ...]:
    """Those found here, and those that the system itself tells: it may have read a text that its object lacks."""
    return tuple(dict.fromkeys([*(() if trust is None else trust.problems), *found]))


def _judged(answer: RawAnswer, target: AnswerTarget, fields: Sequence[Field], value: Any) -> KeptTrust | None:
    if answer.trust is None:
        return None
    return judged_trust(answer.trust, fields, target.gold, target.example.answer_object(), value)


def _points(field: Field, score: FieldScore) -> float:
    """From 0 to 1: F1 of a list, similarity of a free text, else 1 for right and 0 for wrong."""
    return {"list": score.f1, "text": score.soft_f1}.get(field.kind, score.accuracy)


def _retrieval_hit(example: Example, answer: RawAnswer) -> bool | None:
    """Whether the gold document was retrieved; None where the example names none or nothing was retrieved."""
    if example.document_id is None or answer.sources is None:
        return None
    gold = example.document_id  # the id of a chunk, where the data were split by chunk
    return any(gold in (source.document_id, source.node_id) for source in answer.sources)
