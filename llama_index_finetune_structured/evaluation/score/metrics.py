"""Figures of one system, summed over its scored answers: rates from 0 to 1, times in seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from ...example import Source
from .answers import FieldScore

__all__ = ["FieldMetrics", "Interval", "Metrics", "ScoredAnswer", "SystemScore", "field_metrics", "metrics"]


class ScoredAnswer(BaseModel):
    """One system's answer to one example, validated and scored.

    ``value``: the valid answer (None where invalid); ``text``: the system's answer as text; ``raw_text``: the
    text of its LLM. ``field_score``: mean over the fields of 1 for right, 0 for wrong, F1 for a list.
    """

    model_config = ConfigDict(frozen=True)

    valid: bool
    exact: bool
    field_score: float
    fields: dict[str, FieldScore]
    value: JsonValue = None
    text: str = ""
    raw_text: str | None = None
    error: str | None = None
    error_kind: str | None = None
    retrieval_hit: bool | None = None
    sources: tuple[Source, ...] | None = None
    bound_hits: tuple[str, ...] = ()
    retries: int = 0
    seconds: float = 0.0


class FieldMetrics(BaseModel):
    """One field over all answers. ``f1``: of lists, and of free text by similarity.

    ``accuracy``: share of answers with the whole field right. ``missing`` and ``wrong`` are shares of the
    gold values, ``invented`` of the answered values.
    """

    model_config = ConfigDict(frozen=True)

    kind: str
    accuracy: float
    f1: float | None = None
    precision: float | None = None
    recall: float | None = None
    invented: float
    missing: float
    wrong: float
    counts: FieldScore

    @property
    def headline(self) -> float:
        """The field's main figure: F1 of lists and free text, else accuracy."""
        return self.accuracy if self.f1 is None else self.f1


class Interval(BaseModel):
    """A rate and its 95% interval."""

    model_config = ConfigDict(frozen=True)

    rate: float
    low: float
    high: float


class Metrics(BaseModel):
    """A system's figures over a set of answers; every invalid answer counts as wrong."""

    model_config = ConfigDict(frozen=True)

    n: int
    schema_valid: float
    exact_match: float
    field_score: float
    fields: dict[str, FieldMetrics]


class SystemScore(Metrics):
    """A system's figures over all rows, and over those with and without the gold document among the retrieved.

    ``seconds_per_answer``: wall seconds of the run / n, under its concurrency; ``median_latency_s`` and
    ``p95_latency_s``: of single calls. ``errors``: kind -> count. ``bound_hits``: answers in which the
    grammar's bound on a list or text was reached; ``retries``: answers whose call was repeated because the first
    did not fit the schema. ``intervals``: metric -> 95% interval.
    """

    seconds_per_answer: float
    median_latency_s: float
    p95_latency_s: float
    errors: dict[str, int]
    bound_hits: int
    retries: int = 0
    intervals: dict[str, Interval] = Field(default_factory=dict)
    retrieval_hit_rate: float | None = None
    retrieval_hit: Metrics | None = None
    retrieval_miss: Metrics | None = None


def metrics(answers: Sequence[ScoredAnswer], kinds: dict[str, str]) -> Metrics:
    """Figures over these answers; ``kinds``: field path -> "value", "text" or "list"."""
    n = len(answers)
    return Metrics(
        n=n,
        schema_valid=_mean([answer.valid for answer in answers]),
        exact_match=_mean([answer.exact for answer in answers]),
        field_score=_mean([answer.field_score for answer in answers]),
        fields={path: field_metrics(kind, _summed(answers, path)) for path, kind in kinds.items()},
    )


def system_score(answers: Sequence[ScoredAnswer], kinds: dict[str, str], wall_seconds: float) -> SystemScore:
    """All figures of one system but the intervals; ``answers``: at least one."""
    hits = [answer for answer in answers if answer.retrieval_hit is True]
    misses = [answer for answer in answers if answer.retrieval_hit is False]
    latencies = sorted(answer.seconds for answer in answers)
    known = len(hits) + len(misses)
    return SystemScore(
        **metrics(answers, kinds).model_dump(),
        seconds_per_answer=wall_seconds / len(answers),
        median_latency_s=median(latencies),
        p95_latency_s=latencies[min(len(latencies) - 1, int(0.95 * len(latencies)))],
        errors=dict(Counter(a.error_kind or "invalid" for a in answers if not a.valid)),
        bound_hits=sum(bool(answer.bound_hits) for answer in answers),
        retries=sum(bool(answer.retries) for answer in answers),
        retrieval_hit_rate=len(hits) / known if known else None,
        retrieval_hit=metrics(hits, kinds) if hits else None,
        retrieval_miss=metrics(misses, kinds) if misses else None,
    )


def field_metrics(kind: str, counts: FieldScore) -> FieldMetrics:
    """Rates of one field from its summed counts."""
    graded = {"list": counts.f1, "text": counts.soft_f1}
    is_list = kind == "list"
    return FieldMetrics(
        kind=kind,
        accuracy=counts.accuracy,
        f1=graded.get(kind),
        precision=_share(counts.correct, counts.answered) if is_list else None,
        recall=_share(counts.correct, counts.gold) if is_list else None,
        invented=_share(counts.invented, counts.answered),
        missing=_share(counts.missing, counts.gold),
        wrong=_share(counts.wrong, counts.gold),
        counts=counts,
    )


def _summed(answers: Sequence[ScoredAnswer], path: str) -> FieldScore:
    total = FieldScore(answers=0)
    for answer in answers:
        if path in answer.fields:
            total = total + answer.fields[path]
    return total


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
