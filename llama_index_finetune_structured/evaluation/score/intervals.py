"""95% intervals by the paired bootstrap: documents are drawn with replacement, all systems together.

Two things make the plain percentile interval hold its coverage for few rows and rates near 0 or 1
(``tests/evaluation/test_intervals.py`` simulates it): its quantiles are widened to Student's t
(Hesterberg 2015), and each comparison gets two pseudo-rows, one that either system alone has right
(as in Bonett and Price 2012), so that 40 out of 40 is not taken for certainty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from ...errors import ConfigurationError
from .metrics import Interval, ScoredAnswer

if TYPE_CHECKING:
    from ..scorecard import Row

__all__ = ["Difference", "Resamples", "ends_of_gap", "metric_names"]

RESAMPLES = 2000
PSEUDO_WEIGHT = 0.5
"""Of a document, in a difference, where a pseudo-row swings from -1 to 1; twice that for a single rate.
The least that kept the coverage in simulations of 20 to 100 rows."""
_BLOCK = 100
_RATES = ("schema_valid", "exact_match", "field_score")


class Difference(BaseModel):
    """``system`` minus ``against`` in one metric, as a rate, and its 95% interval."""

    model_config = ConfigDict(frozen=True)

    system: str
    against: str
    metric: str
    difference: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves no difference out."""
        return self.low > 0 or self.high < 0


def metric_names(kinds: dict[str, str]) -> list[str]:
    """The metrics that have intervals: the three rates, and each field's headline figure."""
    return [*_RATES, *(f"fields.{path}" for path in kinds)]


def check_metric(metric: str, kinds: dict[str, str]) -> None:
    """Raises ConfigurationError for a metric that has no interval, naming those that have."""
    known = metric_names(kinds)
    if metric not in known:
        raise ConfigurationError(f"no metric {metric!r}; there are: {', '.join(known)}")


class Resamples:
    """Bootstrapped sums of every system and metric over the same rows; ``seed`` fixes them."""

    def __init__(self, rows: Sequence[Row], kinds: dict[str, str], seed: int = 0) -> None:
        self._columns = [(name, metric) for name in rows[0].answers for metric in metric_names(kinds)]
        self._at = {column: place for place, column in enumerate(self._columns)}
        groups = _groups(rows)
        found, possible = _sums(rows, groups, self._columns, kinds)
        self._rates = np.divide(found.sum(0), possible.sum(0))
        self._mean = possible.mean(0)
        self._tail = _widened_tail(len(found) + 2)
        self._draw(found, possible, np.random.default_rng(seed))

    def _draw(self, found: Any, possible: Any, rng: np.random.Generator) -> None:
        size = len(found) + 2
        tops, bottoms, likes = [], [], []
        for _ in range(RESAMPLES // _BLOCK):
            drawn = rng.multinomial(size, [1 / size] * size, size=_BLOCK).astype(float)
            tops.append(drawn[:, :-2] @ found)
            bottoms.append(drawn[:, :-2] @ possible)
            likes.append(drawn[:, -2:])
        self._top, self._bottom, self._like = map(np.concatenate, (tops, bottoms, likes))

    def interval(self, system: str, metric: str) -> Interval:
        """The rate of one system."""
        at = self._at[system, metric]
        low, high = self._ends(self._resampled(at, 0, weight=2 * PSEUDO_WEIGHT))
        return Interval(rate=float(self._rates[at]), low=max(0.0, low), high=min(1.0, high))

    def difference(self, system: str, against: str, metric: str) -> Difference:
        """``system`` minus ``against`` on the same rows."""
        mine, theirs = self._at[system, metric], self._at[against, metric]
        low, high = self._ends(self._resampled(mine, 0) - self._resampled(theirs, 1))
        difference = float(self._rates[mine] - self._rates[theirs])
        return Difference(
            system=system, against=against, metric=metric, difference=difference, low=low, high=high
        )

    def _resampled(self, at: int, own_pseudo_row: int, weight: float = PSEUDO_WEIGHT) -> Any:
        """The rate in each resample, with the pseudo-row that this system has right."""
        size = weight * self._mean[at]
        top = self._top[:, at] + self._like[:, own_pseudo_row] * size
        bottom = self._bottom[:, at] + self._like.sum(1) * size
        return np.divide(top, bottom, out=np.full_like(top, 0.5), where=bottom > 0)

    def _ends(self, values: Any) -> tuple[float, float]:
        low, high = np.quantile(values, [self._tail, 1 - self._tail])
        return float(low), float(high)


def ends_of_gap(one: Resamples, other: Resamples, system: str, metric: str) -> tuple[float, float]:
    """95% interval of a rate on some rows less the same rate on other rows (unpaired)."""
    mine, theirs = one._at[system, metric], other._at[system, metric]
    tail = min(one._tail, other._tail)
    low, high = np.quantile(one._resampled(mine, 0) - other._resampled(theirs, 1), [tail, 1 - tail])
    return float(low), float(high)


def _groups(rows: Sequence[Row]) -> list[int]:
    """Each row's group: rows of one document stand or fall together."""
    places: dict[str, int] = {}
    return [places.setdefault(row.document_id or f"row {at}", len(places)) for at, row in enumerate(rows)]


def _sums(
    rows: Sequence[Row], groups: list[int], columns: list[tuple[str, str]], kinds: dict[str, str]
) -> tuple[Any, Any]:
    """(found, possible) summed by group; shape: groups x columns. A rate is found / possible."""
    found = np.zeros((max(groups) + 1, len(columns)))
    possible = np.zeros_like(found)
    for row, group in zip(rows, groups, strict=True):
        for place, (name, metric) in enumerate(columns):
            part, whole = _share(row.answers[name], metric, kinds)
            found[group, place] += part
            possible[group, place] += whole
    for place in np.flatnonzero(possible.sum(0) == 0).tolist():  # no values anywhere: F1 is the share right
        name, metric = columns[place]
        for row, group in zip(rows, groups, strict=True):
            score = row.answers[name].fields.get(metric.removeprefix("fields."))
            found[group, place] += score.right if score else 0
            possible[group, place] += 1
    return found, possible


def _share(answer: ScoredAnswer, metric: str, kinds: dict[str, str]) -> tuple[float, float]:
    if metric in _RATES:
        rates = {"schema_valid": answer.valid, "exact_match": answer.exact, "field_score": answer.field_score}
        return float(rates[metric]), 1.0
    path = metric.removeprefix("fields.")
    score = answer.fields.get(path)
    if score is None:
        return 0.0, 0.0
    if kinds[path] == "value":
        return float(score.right), float(score.answers)
    found = score.correct if kinds[path] == "list" else score.credit
    return 2.0 * found, float(score.gold + score.answered)


def _widened_tail(n: int) -> float:
    """The tail of a normal that is as wide as Student's t with n - 1 degrees of freedom."""
    return NormalDist().cdf(math.sqrt(n / (n - 1)) * _t_quantile(0.025, n - 1))


def _t_quantile(p: float, df: int) -> float:
    """Cornish-Fisher expansion (Abramowitz and Stegun 26.7.5); within 0.02 of exact from df 3 on."""
    z = NormalDist().inv_cdf(p)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / df + second / df**2 + third / df**3
