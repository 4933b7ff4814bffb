"""Results of a comparison as data: the scored rows, and the figures computed from them alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from ..example import Usage
from ..printable import one_line
from .run.usable_rows import LeftOut
from .score.failures import failure_sentences
from .score.intervals import Difference, Resamples, check_metric, check_system, metric_names
from .score.metrics import ScoredAnswer, SystemScore, system_score
from .score.refusals import RefusalScore, refusal_score
from .score.trust_figures import TrustScore, trust_score

__all__ = [
    "TEACHER",
    "ScoreTable",
    "ScoredRow",
    "differences_of",
    "main_system",
    "references_of",
    "refusal_scores",
    "resamples_of",
    "students_of",
    "system_scores",
    "trust_scores",
]

TEACHER = "teacher"
"""A system of this name is the reference that the others are compared with, and never the page's subject."""


class ScoredRow(BaseModel):
    """One example with the systems' answers.

    Attributes:
        example_id: ``Example.id``.
        question: The user's question before retrieval, else the last user message.
        gold: The example's own answer, as a JSON value.
        document_id: The document that the example is about; None where unknown.
        split: Name of the split that the example belongs to; None where it has none.
        usage: Token counts of the gold answer.
        answers: System -> its answer, scored.
    """

    model_config = ConfigDict(frozen=True)

    example_id: str
    question: str
    gold: JsonValue = None  # null is a gold answer too, which files leave out
    document_id: str | None = None
    split: str | None = None
    usage: Usage | None = None
    answers: dict[str, ScoredAnswer]


class ScoreTable(BaseModel):
    """The data of a Scorecard, whose docstring has the attributes."""

    model_config = ConfigDict(frozen=True)

    systems: dict[str, SystemScore]
    differences: tuple[Difference, ...] = ()
    rows: tuple[ScoredRow, ...]
    left_out: tuple[LeftOut, ...] = ()
    trust: dict[str, TrustScore] = Field(default_factory=dict)
    refusals: dict[str, RefusalScore] = Field(default_factory=dict)
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    created: str = Field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    @model_validator(mode="after")
    def _require_whole(self) -> ScoreTable:
        """Raise ValueError where a file lacks a system's figures or answers, which tables and pages show."""
        if not self.systems or not self.rows:
            raise ValueError("it has no systems or no rows")
        metrics = metric_names(self.field_kinds)
        for name, score in self.systems.items():
            kinds = {path: field.kind for path, field in score.fields.items()}
            missing = {*metrics} - score.intervals.keys()
            if score.n != len(self.rows) or kinds != self.field_kinds or missing:
                raise ValueError(f"{name!r} has no figures of every row and field")
        if any(row.answers.keys() != self.systems.keys() for row in self.rows):
            raise ValueError("a row has other systems' answers")
        pairs = {(known.system, known.against) for known in self.differences}
        if len(self.differences) != len(pairs) * len(metrics):
            raise ValueError("a difference is missing")
        if not (self.trust.keys() | self.refusals.keys()) <= self.systems.keys():
            raise ValueError("figures of trust or refusals are of no system")
        return self

    def difference(self, system: str, against: str, metric: str = "field_score") -> Difference:
        """``system`` minus ``against`` on the same rows, paired, with its 95% interval.

        Args:
            system: Name of a system.
            against: Name of the system that is subtracted.
            metric: "schema_valid", "exact_match", "field_score" or "fields.<path>".

        Raises:
            ConfigurationError: A name that is not in the table.
        """
        for name in (system, against):
            check_system(name, self.systems)
        check_metric(metric, self.field_kinds)
        for known in self.differences:
            if (known.system, known.against, known.metric) == (system, against, metric):
                return known
        return resamples_of(self.rows, self.field_kinds).difference(system, against, metric)

    def problems(self) -> list[str]:
        """Sentences on the failures of each system, on broken rules, and on the examples left out."""
        found = [
            f"{one_line(name)}: {sentence}"
            for name, score in self.systems.items()
            for sentence in failure_sentences(score.failures, score.n)
        ]
        found += [
            f"{one_line(name)}: {score.with_problems} of {score.n} answers break a rule or have a value with two "
            f"meanings; {score.wrong_with_problems} of them are not exact"
            for name, score in self.systems.items()
            if score.with_problems
        ]
        if self.left_out:
            total, n = len(self.left_out) + len(self.rows), len(self.left_out)
            found.append(
                f"{n} of {total} examples were left out; the first: {one_line(self.left_out[0].reason)}"
            )
        return found

    @property
    def unanswered(self) -> list[str]:
        """The systems whose every call failed."""
        return [name for name, score in self.systems.items() if score.all_calls_failed]

    @property
    def field_kinds(self) -> dict[str, str]:
        """Field path -> "value", "text" or "list"."""
        first = next(iter(self.systems.values()))
        return {path: field.kind for path, field in first.fields.items()}


def main_system(table: ScoreTable) -> str:
    """The system that a report is about: the best one that is neither the first (the baseline) nor the teacher."""
    systems = table.systems
    return max(students_of(systems), key=lambda name: (systems[name].field_score, systems[name].exact_match))


def students_of(systems: Iterable[str]) -> list[str]:
    """The systems that are neither the first (the baseline) nor the teacher; the first one where there are none."""
    names = list(systems)
    return [name for name in names[1:] if name != TEACHER] or names[:1]


def references_of(systems: Iterable[str]) -> list[str]:
    """The systems that the others are compared with: the first one, and the teacher where it is among them."""
    names = list(systems)
    return names[:1] + [name for name in names[1:] if name == TEACHER]


def resamples_of(rows: Sequence[ScoredRow], kinds: dict[str, str], seed: int = 0) -> Resamples:
    """Bootstrap resamples of the rows, for intervals."""
    return Resamples([row.answers for row in rows], [row.document_id for row in rows], kinds, seed)


def system_scores(
    rows: Sequence[ScoredRow], kinds: dict[str, str], wall_seconds: Mapping[str, float], resamples: Resamples
) -> dict[str, SystemScore]:
    """System -> its figures over the rows, with intervals; ``wall_seconds``: system -> duration of its run."""
    scores = {}
    for name, seconds in wall_seconds.items():
        score = system_score([row.answers[name] for row in rows], kinds, seconds)
        intervals = {metric: resamples.interval(name, metric) for metric in metric_names(kinds)}
        scores[name] = score.model_copy(update={"intervals": intervals})
    return scores


def trust_scores(rows: Sequence[ScoredRow]) -> dict[str, TrustScore]:
    """System -> figures of its answers' probabilities, for those that have any."""
    documents = [row.document_id for row in rows]
    scores = {name: trust_score([row.answers[name] for row in rows], documents) for name in rows[0].answers}
    return {name: score for name, score in scores.items() if score is not None}


def refusal_scores(rows: Sequence[ScoredRow]) -> dict[str, RefusalScore]:
    """System -> how well it says that a text is of another kind; empty where no gold answer does."""
    scores = {name: refusal_score((row.gold, row.answers[name]) for row in rows) for name in rows[0].answers}
    return {name: score for name, score in scores.items() if score is not None}


def differences_of(names: Sequence[str], kinds: dict[str, str], resamples: Resamples) -> Iterator[Difference]:
    """Every system minus the first one and minus the teacher, in every metric."""
    for against in references_of(names):
        for name in names:
            if name != against:
                for metric in metric_names(kinds):
                    yield resamples.difference(name, against, metric)
