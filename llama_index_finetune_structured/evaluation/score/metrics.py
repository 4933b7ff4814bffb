"""Figures of one system, summed over its scored answers: rates from 0 to 1, times in seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from ...example import Source
from ..run.kept_trust import KeptTrust
from .answers import FieldScore
from .failures import INVALID, Failure, group_failures

__all__ = [
    "FieldMetrics",
    "Interval",
    "Metrics",
    "ScoredAnswer",
    "SystemScore",
    "field_metrics",
    "mean_of_known",
    "metrics",
]


class ScoredAnswer(BaseModel):
    """One system's answer to one example, validated and scored.

    Attributes:
        valid: Whether the answer fits its schema.
        exact: Whether every field is right.
        field_score: Mean over the fields: 1 for right, 0 for wrong, F1 of a list, similarity of free text.
        fields: Field path -> counts.
        value: The valid answer; None where invalid.
        text: The system's answer as text.
        raw_text: The last text of the system's LLM, from its events; None where there was none.
        error: What went wrong; None where valid.
        error_kind: Class name of the call's error; "invalid" for an answer that does not fit the schema.
        call_failed: Whether the call itself failed, so that there is no answer.
        retrieval_hit: Whether the gold document was among the retrieved; None where unknown.
        sources: The retrieved nodes; None where the system is not a query engine.
        bound_hits: JSON paths where the grammar's bound on a list or text was reached.
        retries: How often the call was repeated because an answer did not fit the schema.
        seconds: Latency of the call.
        reasoning_tokens: Tokens that the system's LLM wrote before its answers in the call; None where unknown.
        trust: How sure the answer is, judged by gold; None where the system does not say it.
        problems: Values of a valid answer with two meanings, and the rules that it breaks.
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
    call_failed: bool = False
    retrieval_hit: bool | None = None
    sources: tuple[Source, ...] | None = None
    bound_hits: tuple[str, ...] = ()
    retries: int = 0
    seconds: float = 0.0
    reasoning_tokens: int | None = None
    trust: KeptTrust | None = None
    problems: tuple[str, ...] = ()


class FieldMetrics(BaseModel):
    """One field over all answers; rates from 0 to 1.

    Attributes:
        kind: "value", "text" or "list".
        accuracy: Share of answers with the whole field right.
        f1: Of lists, and of free text by similarity; None for other values.
        precision: Correct share of the answered items; of lists only.
        recall: Correct share of the gold items; of lists only.
        invented: Share of the answered values that gold does not have.
        missing: Share of the gold values that were not answered.
        wrong: Share of the gold values that were answered wrongly.
        counts: The counts that the rates come from.
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
    """A rate and its 95% interval.

    Attributes:
        rate: The rate, from 0 to 1.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    model_config = ConfigDict(frozen=True)

    rate: float
    low: float
    high: float


class Metrics(BaseModel):
    """A system's figures over a set of answers; every invalid answer counts as wrong.

    Attributes:
        n: Number of answers.
        schema_valid: Share of valid answers.
        exact_match: Share of answers with every field right.
        field_score: Mean over the answers of their field scores.
        fields: Field path -> figures of the field.
    """

    model_config = ConfigDict(frozen=True)

    n: int
    schema_valid: float
    exact_match: float
    field_score: float
    fields: dict[str, FieldMetrics]


class SystemScore(Metrics):
    """A system's figures over all rows, and over those with and without the gold document among the retrieved.

    Attributes:
        seconds_per_answer: Wall seconds of the run / n, under its concurrency.
        median_latency_s: Median latency of the single calls.
        p95_latency_s: 95th percentile of the latencies of the single calls.
        errors: Kind of error -> number of invalid answers.
        failures: The causes of the failed calls and invalid answers, most frequent first.
        bound_hits: Number of answers in which the grammar's bound on a list or text was reached.
        retries: Number of answers whose call was repeated because the first did not fit the schema.
        reasoning_tokens: Mean tokens of reasoning in a call; None where no call counts its tokens.
        with_problems: Number of answers that break a rule, or have a value with two meanings.
        wrong_with_problems: Number of those that are not exact.
        intervals: Metric -> its rate and 95% interval.
        retrieval_hit_rate: Share of answers with the gold document among the retrieved; None where unknown.
        retrieval_hit: Figures over the answers with the gold document among the retrieved.
        retrieval_miss: Figures over the answers without it.
    """

    seconds_per_answer: float
    median_latency_s: float
    p95_latency_s: float
    errors: dict[str, int]
    failures: tuple[Failure, ...] = ()
    bound_hits: int
    retries: int = 0
    reasoning_tokens: float | None = None
    with_problems: int = 0
    wrong_with_problems: int = 0
    intervals: dict[str, Interval] = Field(default_factory=dict)
    retrieval_hit_rate: float | None = None
    retrieval_hit: Metrics | None = None
    retrieval_miss: Metrics | None = None

    @property
    def all_calls_failed(self) -> bool:
        """Whether there is no answer at all, so that the rates say nothing about the system."""
        return sum(failure.count for failure in self.failures if failure.call_failed) == self.n


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
        errors=dict(Counter(a.error_kind or INVALID for a in answers if not a.valid)),
        failures=_failures(answers),
        bound_hits=sum(bool(answer.bound_hits) for answer in answers),
        retries=sum(bool(answer.retries) for answer in answers),
        reasoning_tokens=mean_of_known([answer.reasoning_tokens for answer in answers]),
        with_problems=sum(bool(answer.problems) for answer in answers),
        wrong_with_problems=sum(bool(answer.problems) and not answer.exact for answer in answers),
        retrieval_hit_rate=len(hits) / known if known else None,
        retrieval_hit=metrics(hits, kinds) if hits else None,
        retrieval_miss=metrics(misses, kinds) if misses else None,
    )


def _failures(answers: Sequence[ScoredAnswer]) -> tuple[Failure, ...]:
    invalid = [answer for answer in answers if not answer.valid]
    return group_failures([(a.call_failed, a.error_kind or INVALID, a.error or "") for a in invalid])


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
    return FieldScore.total(answer.fields[path] for answer in answers if path in answer.fields)


def mean_of_known(counts: Sequence[int | None]) -> float | None:
    """The mean over what is known; None where nothing is."""
    known = [count for count in counts if count is not None]
    return sum(known) / len(known) if known else None


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
