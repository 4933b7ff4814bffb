"""How far the probabilities of a system's answers can be trusted: ranking, calibration, and what they let it answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from ...errors import MissingDependencyError
from ...trust.calibration import field_name
from .intervals import PSEUDO_WEIGHT, document_numbers, interval_of, resampled_counts, widened_tail
from .metrics import Interval, ScoredAnswer

__all__ = [
    "FieldTrustScore",
    "ReliabilityBin",
    "RiskCoverage",
    "TrustScore",
    "calibration_error",
    "trust_score",
]

ACCURACY = 0.95
"""Accuracy of the answers that a system gives itself, for ``TrustScore.coverage``."""
_BINS = 15  # most bins of equal mass
_IN_BIN = 20  # chosen: fewest answers of a bin; of fewer the error is mostly chance
_DRAWS = 200  # chosen: the mean of so many is known to a twentieth of itself
_POINTS = 20  # of the risk-coverage curve


class ReliabilityBin(BaseModel):
    """Answers of like probability.

    Attributes:
        n: Number of answers.
        probability: Their mean probability.
        right: Their share of right answers.
    """

    model_config = ConfigDict(frozen=True)

    n: int
    probability: float
    right: float


class RiskCoverage(BaseModel):
    """One point of the risk-coverage curve.

    Attributes:
        coverage: Share of the answers that are given, the surest ones.
        accuracy: Share of right answers among these, with its 95% interval.
    """

    model_config = ConfigDict(frozen=True)

    coverage: float
    accuracy: Interval


class FieldTrustScore(BaseModel):
    """The probabilities of the values of one field.

    Attributes:
        n: Number of values.
        right: Share of right values.
        auroc: As of ``TrustScore``; None where all values are right, or none is.
        calibration_error: As of ``TrustScore``.
    """

    model_config = ConfigDict(frozen=True)

    n: int
    right: float
    auroc: float | None = None
    calibration_error: float


class TrustScore(BaseModel):
    """How far the probabilities of a system's answers can be trusted; all are out of fold.

    Each probability is of a calibration that was fitted on other rows of the scorecard. An answer without one, such as
    a call that failed, is left out.

    Attributes:
        n: Number of answers with a probability.
        right: Share of right answers among them.
        auroc: Probability that of a right and a wrong answer the right one is surer, with its 95% interval; None where
            all answers are right, or none is.
        calibration_error: Expected calibration error: mean distance, over the bins by their answers, between
            probability and share of right answers. At most 15 bins of equal mass, of at least 20 answers each.
        chance: The calibration error to expect of exact probabilities of as many answers: what is below is chance.
        bins: These bins, from unsure to sure.
        curve: Accuracy by the share of answers given, the surest first.
        coverage: Greatest share of the answers, the surest ones, of which 95% are right, with its 95% interval.
        fields: Field -> figures of its values.
    """

    model_config = ConfigDict(frozen=True)

    n: int
    right: float
    auroc: Interval | None = None
    calibration_error: float
    chance: float
    bins: tuple[ReliabilityBin, ...]
    curve: tuple[RiskCoverage, ...]
    coverage: Interval
    fields: dict[str, FieldTrustScore] = {}


def trust_score(answers: Sequence[ScoredAnswer], documents: Sequence[str | None]) -> TrustScore | None:
    """The figures of a system's answers; None where none has an out-of-fold probability."""
    known = [
        (answer.trust.probability, answer.exact, document)
        for answer, document in zip(answers, documents, strict=True)
        if answer.trust is not None and answer.trust.probability is not None
    ]
    if not known:
        return None
    probabilities, right = np.array([row[0] for row in known]), np.array([row[1] for row in known])
    resampled = _Resampled(probabilities, right, document_numbers([row[2] for row in known]))
    bins = _bins(probabilities, right)
    return TrustScore(
        n=len(known),
        right=float(right.mean()),
        auroc=resampled.auroc(),
        calibration_error=_distance(bins),
        chance=_chance(probabilities),
        bins=tuple(bins),
        curve=tuple(resampled.curve()),
        coverage=resampled.coverage(),
        fields=_field_scores(answers),
    )


def calibration_error(probabilities: Sequence[float], right: Sequence[bool]) -> float:
    """The expected calibration error, as of ``TrustScore``."""
    return _distance(_bins(np.array(probabilities), np.array(right)))


def _bins(probabilities: Any, right: Any) -> list[ReliabilityBin]:
    order = np.argsort(probabilities, kind="stable")
    parts = np.array_split(order, min(_BINS, max(1, len(order) // _IN_BIN)))
    return [
        ReliabilityBin(
            n=len(part), probability=float(probabilities[part].mean()), right=float(right[part].mean())
        )
        for part in parts
    ]


def _distance(bins: Sequence[ReliabilityBin]) -> float:
    total = sum(part.n for part in bins)
    return sum(part.n * abs(part.probability - part.right) for part in bins) / total


def _chance(probabilities: Any) -> float:
    rng = np.random.default_rng(0)
    draws = (rng.random(len(probabilities)) < probabilities for _ in range(_DRAWS))
    return float(np.mean([_distance(_bins(probabilities, draw)) for draw in draws]))


def _auroc(probabilities: Any, right: Any) -> float | None:
    try:
        from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError("scikit-learn", "local", "the figures of trust") from error

    return float(roc_auc_score(right, probabilities)) if len({*right.tolist()}) == 2 else None


def _field_scores(answers: Sequence[ScoredAnswer]) -> dict[str, FieldTrustScore]:
    values: dict[str, list[tuple[float, bool]]] = {}
    for answer in answers:
        for value in () if answer.trust is None else answer.trust.values:
            if value.probability is not None and value.is_due is not None:
                is_right = value.is_due and value.is_right is True
                values.setdefault(field_name(value.path), []).append((value.probability, is_right))
    scores = {}
    for name, pairs in values.items():
        probabilities, right = np.array([p for p, _ in pairs]), np.array([r for _, r in pairs])
        scores[name] = FieldTrustScore(
            n=len(pairs),
            right=float(right.mean()),
            auroc=_auroc(probabilities, right),
            calibration_error=_distance(_bins(probabilities, right)),
        )
    return scores


class _Resampled:
    """Answers by probability, and bootstrap resamples of their documents.

    Answers of equal probability are one level. ``_right``, ``_all``: [resamples, levels], answers of each level, from
    sure to unsure. ``_pseudo``: [resamples, 2], how often the pseudo-rows were drawn, a right and a wrong answer of no
    level: they widen intervals where nearly all answers are right, as in ``Resamples``.
    """

    def __init__(self, probabilities: Any, right: Any, documents: list[int]) -> None:
        self._probabilities, self._is_right = probabilities, right
        levels, level = np.unique(-probabilities, return_inverse=True)
        size = max(documents) + 1
        all_of, right_of = np.zeros((size, len(levels))), np.zeros((size, len(levels)))
        places = (np.array(documents), level)
        np.add.at(all_of, places, 1)
        np.add.at(right_of, places, right)
        self._total, self._rights = all_of.sum(0), right_of.sum(0)
        self._tail = widened_tail(size + 2)
        counts = list(resampled_counts(size + 2))
        self._all = np.concatenate([block[:, :-2] @ all_of for block in counts])
        self._right = np.concatenate([block[:, :-2] @ right_of for block in counts])
        self._pseudo = np.concatenate([block[:, -2:] for block in counts])

    def auroc(self) -> Interval | None:
        """A pseudo-row is surer than half of the answers."""
        rate = _auroc(self._probabilities, self._is_right)
        if rate is None:
            return None
        wrong = self._all - self._right
        pairs = (self._right * (wrong[:, ::-1].cumsum(1)[:, ::-1] - wrong / 2)).sum(1)
        rights, wrongs = self._right.sum(1), wrong.sum(1)
        more_right, more_wrong = PSEUDO_WEIGHT * self._pseudo.T
        pairs += (more_right * wrongs + more_wrong * rights + more_right * more_wrong) / 2
        return self._interval(rate, pairs, (rights + more_right) * (wrongs + more_wrong))

    def curve(self) -> list[RiskCoverage]:
        """The accuracy of each twentieth of the answers more."""
        return [
            RiskCoverage(coverage=share, accuracy=self._accuracy(share))
            for share in (point / _POINTS for point in range(1, _POINTS + 1))
        ]

    def _accuracy(self, share: float) -> Interval:
        """Of the surest answers up to the level at which at least ``share`` of all are given."""
        rate = _rights_and_all(self._rights[None], self._total[None], share)
        rights, given = _rights_and_all(self._right, self._all, share)
        more = 2 * PSEUDO_WEIGHT * self._pseudo
        return self._interval(float(rate[0][0] / rate[1][0]), rights + more[:, 0], given + more.sum(1))

    def coverage(self) -> Interval:
        """The greatest share with an accuracy of ``ACCURACY``."""
        rate = float(_coverage(self._rights[None], self._total[None])[0])
        return self._interval(rate, _coverage(self._right, self._all), np.ones(len(self._all)))

    def _interval(self, rate: float, points: Any, possible: Any) -> Interval:
        values = np.divide(points, possible, out=np.full_like(points, 0.5), where=possible > 0)
        return interval_of(rate, values, self._tail)


def _rights_and_all(right: Any, every: Any, share: float) -> tuple[Any, Any]:
    """Right answers and answers among the surest ``share``, [resamples]."""
    given = every.cumsum(1)
    last = np.argmax(given >= share * given[:, -1:] - 1e-9, axis=1)[:, None]
    return np.take_along_axis(right.cumsum(1), last, 1)[:, 0], np.take_along_axis(given, last, 1)[:, 0]


def _coverage(right: Any, every: Any) -> Any:
    given = every.cumsum(1)
    reached = np.where(right.cumsum(1) >= ACCURACY * given - 1e-9, given, 0.0)
    return np.divide(reached.max(1), given[:, -1], out=np.zeros(len(given)), where=given[:, -1] > 0)
