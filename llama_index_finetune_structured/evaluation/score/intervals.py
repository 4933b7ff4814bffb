"""95% intervals by the paired bootstrap: documents are drawn with replacement, all systems together.

The plain percentile interval is too narrow for few rows and rates near 0 or 1. Two corrections keep its coverage
(``tests/evaluation/test_intervals.py`` simulates it): its quantiles are widened to Student's t (Hesterberg 2015),
and each comparison gets two pseudo-rows, each right for one of the two systems only (as in Bonett and Price 2012),
so that 40 right of 40 is not taken for certainty.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from ...errors import ConfigurationError
from ...printable import one_line
from .metrics import Interval, ScoredAnswer

__all__ = [
    "Difference",
    "Resamples",
    "check_metric",
    "check_system",
    "document_numbers",
    "ends_of_gap",
    "interval_of",
    "metric_names",
    "resampled_counts",
    "widened_tail",
]

RESAMPLES = 2000
"""Chosen: from seed to seed the ends of an interval then vary by 0.06 standard deviations of the resampled rates."""
PSEUDO_WEIGHT = 0.5
"""A pseudo-row's weight in a difference, as a share of a mean document; it moves the difference by -1 to 1. A
single rate moves by 0 to 1 only and takes twice that. The smallest weight that kept the coverage in simulations of
20 to 100 rows."""
_BLOCK = 100  # resamples drawn at once: bounds memory to _BLOCK x documents
_TAIL = 0.025  # each side of a 95% interval
_PSEUDO_ROWS = 2
_RATES = ("schema_valid", "exact_match", "field_score")
_FIELDS = "fields."


class Difference(BaseModel):
    """``system`` minus ``against`` in one metric, as a rate, and its 95% interval.

    Attributes:
        system: Name of the system.
        against: Name of the system that is subtracted.
        metric: "schema_valid", "exact_match", "field_score" or "fields.<path>".
        difference: From -1 to 1.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    model_config = ConfigDict(frozen=True)

    system: str
    against: str
    metric: str
    difference: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def metric_names(kinds: dict[str, str]) -> list[str]:
    """The metrics that have intervals: the three rates, and each field's main figure as "fields.<path>"."""
    return [*_RATES, *(f"{_FIELDS}{path}" for path in kinds)]


def check_metric(metric: str, kinds: dict[str, str]) -> None:
    """Raise ConfigurationError, with all metric names, for a name that is not among them."""
    known = metric_names(kinds)
    if metric not in known:
        raise ConfigurationError(f"no metric {metric!r}; there are: {one_line(', '.join(known))}")


def check_system(name: str, systems: Mapping[str, object]) -> None:
    """Raise ConfigurationError, with the names of all systems, for a name that is not among them."""
    if name not in systems:
        raise ConfigurationError(f"no system {name!r}; there are: {one_line(', '.join(systems))}")


class Resamples:
    """Bootstrap resamples of every system and metric over the same rows.

    ``answers``: for each row, system -> its answer. ``documents``: each row's document (None: one of its own);
    rows of one document are drawn together. ``seed`` fixes the resamples.
    """

    def __init__(
        self,
        answers: Sequence[Mapping[str, ScoredAnswer]],
        documents: Sequence[str | None],
        kinds: dict[str, str],
        seed: int = 0,
    ) -> None:
        columns = [(name, metric) for name in answers[0] for metric in metric_names(kinds)]
        self._column = {pair: at for at, pair in enumerate(columns)}
        points, possible = _sums(answers, document_numbers(documents), columns, kinds)
        self._rates = np.divide(points.sum(0), possible.sum(0))
        self._mean_possible = possible.mean(0)
        self._tail = widened_tail(len(points) + _PSEUDO_ROWS)
        self._draw(points, possible, seed)

    def _draw(self, points: Any, possible: Any, seed: int) -> None:
        """Resampled sums, ``_points`` and ``_possible``: [resamples, columns], without the pseudo-rows.

        ``_pseudo``: [resamples, 2], how often each pseudo-row was drawn; what one adds depends on the comparison.
        """
        size = len(points) + _PSEUDO_ROWS
        sums, wholes, pseudo = [], [], []
        for counts in resampled_counts(size, seed):
            sums.append(counts[:, :-_PSEUDO_ROWS] @ points)
            wholes.append(counts[:, :-_PSEUDO_ROWS] @ possible)
            pseudo.append(counts[:, -_PSEUDO_ROWS:])
        self._points, self._possible, self._pseudo = map(np.concatenate, (sums, wholes, pseudo))

    def interval(self, system: str, metric: str) -> Interval:
        """The rate of one system with its interval."""
        at = self._column[system, metric]
        return interval_of(
            float(self._rates[at]), self._resampled(at, 0, weight=2 * PSEUDO_WEIGHT), self._tail
        )

    def difference(self, system: str, against: str, metric: str) -> Difference:
        """``system`` minus ``against`` on the same rows, paired."""
        first, second = self._column[system, metric], self._column[against, metric]
        low, high = _quantiles(self._resampled(first, 0) - self._resampled(second, 1), self._tail)
        difference = float(self._rates[first] - self._rates[second])
        return Difference(
            system=system, against=against, metric=metric, difference=difference, low=low, high=high
        )

    def _resampled(self, at: int, right_pseudo_row: int, weight: float = PSEUDO_WEIGHT) -> Any:
        """One column's rate in each resample, [resamples]; of the pseudo-rows only the named one is right."""
        size = weight * self._mean_possible[at]
        points = self._points[:, at] + self._pseudo[:, right_pseudo_row] * size
        possible = self._possible[:, at] + self._pseudo.sum(1) * size
        return np.divide(points, possible, out=np.full_like(points, 0.5), where=possible > 0)


def resampled_counts(size: int, seed: int = 0) -> Iterator[Any]:
    """How often each of ``size`` documents is drawn in each resample, in blocks of [resamples, size]."""
    rng = np.random.default_rng(seed)
    for _ in range(RESAMPLES // _BLOCK):
        yield rng.multinomial(size, [1 / size] * size, size=_BLOCK).astype(float)


def interval_of(rate: float, resampled: Any, tail: float) -> Interval:
    """A rate and the interval of its resampled values, [resamples]; ``tail``: as of ``widened_tail``."""
    low, high = _quantiles(resampled, tail)
    return Interval(rate=rate, low=max(0.0, low), high=min(1.0, high))


def ends_of_gap(one: Resamples, other: Resamples, system: str, metric: str) -> tuple[float, float]:
    """95% interval of a system's rate on some rows minus its rate on other rows, unpaired."""
    first, second = one._column[system, metric], other._column[system, metric]
    return _quantiles(one._resampled(first, 0) - other._resampled(second, 1), min(one._tail, other._tail))


def _quantiles(values: Any, tail: float) -> tuple[float, float]:
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def document_numbers(documents: Sequence[str | None]) -> list[int]:
    """Each row's group number: rows of one document share it."""
    numbers: dict[str, int] = {}
    return [
        numbers.setdefault(document or f"row {at}", len(numbers)) for at, document in enumerate(documents)
    ]


def _sums(
    answers: Sequence[Mapping[str, ScoredAnswer]],
    groups: list[int],
    columns: list[tuple[str, str]],
    kinds: dict[str, str],
) -> tuple[Any, Any]:
    """(points, possible points), each [groups, columns]; a rate is their quotient."""
    points = np.zeros((max(groups) + 1, len(columns)))
    possible = np.zeros_like(points)
    for row, group in zip(answers, groups, strict=True):
        for at, (name, metric) in enumerate(columns):
            part, whole = _share(row[name], metric, kinds)
            points[group, at] += part
            possible[group, at] += whole
    for at in np.flatnonzero(possible.sum(0) == 0).tolist():  # no values at all: F1 is then the accuracy
        name, metric = columns[at]
        for row, group in zip(answers, groups, strict=True):
            score = row[name].fields.get(metric.removeprefix(_FIELDS))
            points[group, at] += score.right if score else 0
            possible[group, at] += 1
    return points, possible


def _share(answer: ScoredAnswer, metric: str, kinds: dict[str, str]) -> tuple[float, float]:
    """(points, possible points) of one answer in one metric."""
    if metric in _RATES:
        rates = {"schema_valid": answer.valid, "exact_match": answer.exact, "field_score": answer.field_score}
        return float(rates[metric]), 1.0
    path = metric.removeprefix(_FIELDS)
    score = answer.fields.get(path)
    if score is None:
        return 0.0, 0.0
    if kinds[path] == "value":
        return float(score.right), float(score.answers)
    correct = score.correct if kinds[path] == "list" else score.credit
    return 2.0 * correct, float(score.gold + score.answered)


def widened_tail(n: int) -> float:
    """The tail of a normal distribution at Student's t quantile (n - 1 degrees of freedom) of ``_TAIL``.

    Times sqrt(n / (n - 1)), as the spread of bootstrap means lacks this factor.
    """
    return NormalDist().cdf(math.sqrt(n / (n - 1)) * _t_quantile(_TAIL, n - 1))


def _t_quantile(p: float, df: int) -> float:
    """Cornish-Fisher expansion (Abramowitz and Stegun 26.7.5); within 0.02 of exact from df 3 on."""
    z = NormalDist().inv_cdf(p)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / df + second / df**2 + third / df**3
