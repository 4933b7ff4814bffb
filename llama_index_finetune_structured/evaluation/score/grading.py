"""Raw answers -> the scorecard: each is read, validated and scored against its example's gold answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...errors import ConfigurationError, StructuredAnswerError
from ...example import Example, canonical_json
from ..report.verdict import TEACHER
from ..run.answer_log import Answer
from ..run.ask import Answers
from ..run.systems import question_of
from ..run.target import Target
from ..scorecard import Row, Scorecard
from .answers import FieldScore, score_answer
from .fields import Field, fields_of, schema_of
from .intervals import Difference, Resamples, metric_names
from .metrics import ScoredAnswer, SystemScore, system_score
from .rules import FieldRule

__all__ = ["Plan", "grade"]


class Plan:
    """Which fields each example is scored in, and every field's kind."""

    def __init__(self, targets: list[Target], rules: dict[str, FieldRule]) -> None:
        self._by_schema: dict[str, tuple[Field, ...]] = {}
        self._inferred = schema_of([target.gold for target in targets if target.schema is None])
        self._rules = rules
        self.kinds: dict[str, str] = {}
        for target in targets:
            for field in self.fields(target):
                self.kinds[field.path] = field.kind
                self.kinds |= {part.path: _part_kind(part) for part in _parts(field)}
        unknown = [
            path for path, rule in rules.items() if path not in self.kinds and rule.compare != "ignore"
        ]
        if unknown:
            raise ConfigurationError(
                f"fields: no field {', '.join(map(repr, unknown))}; there are: {', '.join(self.kinds)}"
            )

    def fields(self, target: Target) -> tuple[Field, ...]:
        schema = self._inferred if target.schema is None else target.schema
        key = canonical_json(schema)
        if key not in self._by_schema:
            self._by_schema[key] = fields_of(schema, self._rules)
        return self._by_schema[key]


def _part_kind(part: Field) -> str:
    """A part of list items is summed over the items, so its figure is an F1 too."""
    return "text" if part.kind == "text" else "list"


def _parts(field: Field) -> tuple[Field, ...]:
    return tuple(part for part in field.items if part.keys)


def grade(
    examples: list[Example],
    targets: list[Target],
    plan: Plan,
    answered: dict[str, Answers],
    settings: dict[str, Any],
) -> Scorecard:
    rows = [
        Row(
            example_id=example.id,
            question=question_of(example),
            gold=target.gold,
            document_id=example.document_id,
            split=example.split,
            usage=example.usage,
            answers={
                name: _scored(given.answers[at], example, target, plan.fields(target))
                for name, given in answered.items()
            },
        )
        for at, (example, target) in enumerate(zip(examples, targets, strict=True))
    ]
    systems = {
        name: system_score([row.answers[name] for row in rows], plan.kinds, given.wall_seconds)
        for name, given in answered.items()
    }
    resamples = Resamples(rows, plan.kinds)
    return Scorecard(
        systems={
            name: _with_intervals(name, score, resamples, plan.kinds) for name, score in systems.items()
        },
        differences=tuple(_differences(list(systems), resamples, plan.kinds)),
        rows=tuple(rows),
        settings=settings,
    )


def _with_intervals(
    name: str, score: SystemScore, resamples: Resamples, kinds: dict[str, str]
) -> SystemScore:
    intervals = {metric: resamples.interval(name, metric) for metric in metric_names(kinds)}
    return score.model_copy(update={"intervals": intervals})


def _differences(names: list[str], resamples: Resamples, kinds: dict[str, str]) -> Iterator[Difference]:
    """Every system against the first and against the teacher."""
    for against in dict.fromkeys([names[0], *(name for name in names if name == TEACHER)]):
        for name in names:
            if name != against:
                for metric in metric_names(kinds):
                    yield resamples.difference(name, against, metric)


def _scored(answer: Answer, example: Example, target: Target, fields: tuple[Field, ...]) -> ScoredAnswer:
    value, error, kind = None, answer.error, answer.error_kind
    if error is None:
        try:
            value = target.read(answer.text if answer.value is None else answer.value)
        except StructuredAnswerError as unfit:
            error, kind = str(unfit), "invalid"
    valid = error is None
    scores = score_answer(fields, target.gold, value, valid)
    mine = [scores[field.path] for field in fields]
    points = [_points(field, score) for field, score in zip(fields, mine, strict=True)]
    return ScoredAnswer(
        valid=valid,
        exact=valid and all(score.right for score in mine),
        field_score=sum(points) / len(points) if valid and points else 0.0,
        fields=scores,
        value=value,
        text=answer.text,
        raw_text=answer.raw_text,
        error=error,
        error_kind=kind,
        retrieval_hit=_found(example, answer),
        sources=answer.sources,
        bound_hits=answer.bound_hits,
        retries=answer.retries,
        seconds=answer.seconds,
    )


def _points(field: Field, score: FieldScore) -> float:
    """From 0 to 1: a list's F1, a free text's similarity, otherwise right or wrong."""
    return {"list": score.f1, "text": score.soft_f1}.get(field.kind, score.accuracy)


def _found(example: Example, answer: Answer) -> bool | None:
    """Whether retrieval gave the gold document; None where there was none to find or no retrieval."""
    if example.document_id is None or answer.sources is None:
        return None
    gold = example.document_id  # or the one chunk that holds the answer, where those are what was split by
    return any(gold in (source.document_id, source.node_id) for source in answer.sources)
