"""Calibration: from probabilities of tokens and words to the probability that it is right, by logistic regression.

Platt scaling (https://home.cs.colorado.edu/~mozer/Teaching/syllabi/6622/papers/Platt1999.pdf) on the log-odds of
these probabilities. Fitted on held-out answers; kept and applied as JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ..errors import MissingDependencyError
from .answer_trust import EndTrust, FieldTrust, LogProbability, Trust
from .json_spans import JsonPath

__all__ = [
    "PROBLEMS",
    "Calibration",
    "Judged",
    "Logistic",
    "field_name",
    "fitted",
    "fitted_answers",
    "log_odds",
]

_LIMIT = 12.0  # of log-odds; chosen: a probability of 6e-6, beyond what held-out rows can tell
# Standard deviations of the prior. Chosen on random splits of two models' answers: the likelihood of the others is
# greater than with 1 at 20 to 50 rows, and no smaller at 175.
_SPREAD = 1.0  # of the offsets, around 0
# Means and standard deviations of the weights, by feature. That of the tagger was measured without any calibration, on
# spoken requests (AUROC .815 without it, .871 with a half, .876 with 1) and bills (.93 to 1; .97 to 1; .98).
_WEIGHTS = (1.0, 0.0, 0.0, 0.5)
_WEIGHT_SPREADS = (0.5, 1.0, 1.0, 0.5)
# A right and a wrong answer that are always added, so that the regression has both kinds.
_PSEUDO = ((_LIMIT / 2, True), (-_LIMIT / 2, False))
_PSEUDO_RIGHT = tuple(is_right for _, is_right in _PSEUDO)
PROBLEMS = "(problems)"
"""Name of answers with problems, which no field has: the offset that lowers their probabilities."""
_PROBLEMS_OFFSET = -2.0  # chosen: odds 7 times smaller; the mean of its prior, and what holds without rows
FEATURES = (0, 1, 2, 3)
"""All tokens among the allowed ones, the least likely of them, all in the whole vocabulary, and the tagger's word."""
_ANSWER_FEATURES = (0, 3)


class Judged(NamedTuple):
    """Token probabilities with a judgement of what they wrote. ``name``: of the field; empty for whole answers."""

    tokens: LogProbability
    name: str
    is_right: bool


class Logistic(BaseModel):
    """A logistic regression on the log-odds of token probabilities.

    Attributes:
        weights: Of the log-odds of all tokens among the allowed ones, of the least likely token, of all tokens in the
            whole vocabulary, and of the word whose label the tagger finds least likely.
        bias: Added to their sum.
        offsets: Added for a field, by its name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: tuple[float, float, float, float] = _WEIGHTS
    bias: float = 0.0
    offsets: dict[str, float] = {}

    def probability(self, tokens: LogProbability | None, name: str = "") -> float | None:
        """The probability that what the tokens wrote is right; None for unknown tokens.

        Args:
            tokens: The token probabilities.
            name: Name of the field.
        """
        if tokens is None:
            return None
        odds = sum(w * x for w, x in zip(self.weights, _features(tokens), strict=True))
        return _logistic(odds + self.bias + self.offsets.get(name, 0.0))


class Calibration(BaseModel):
    """What held-out answers tell of token probabilities.

    Attributes:
        answer: Whether a whole answer is right. Its only offset is that of answers with problems, at most 0.
        presence: Whether a value that is there ought to be there.
        writing: Whether a value that ought to be there is right.
        ending: Whether nothing is missing in a list or object.
        rows: Held-out answers that it was fitted on; 0: none, and probabilities are the products of the tokens'.
        held_out: Of each of them, the probability by a fit without it, and whether it was right.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    answer: Logistic = Logistic(offsets={PROBLEMS: _PROBLEMS_OFFSET})
    presence: Logistic = Logistic()
    writing: Logistic = Logistic()
    ending: Logistic = Logistic()
    rows: int = Field(default=0, ge=0)
    held_out: tuple[tuple[float, bool], ...] = ()

    def applied(self, trust: Trust) -> Trust:
        """The trust with probabilities.

        Args:
            trust: The trust with token probabilities.
        """
        return trust.model_copy(
            update={
                "probability": self.answer.probability(trust.tokens, PROBLEMS if trust.problems else ""),
                "fields": tuple(self._field(field) for field in trust.fields),
                "ends": tuple(self._end(end) for end in trust.ends),
                "calibrated": self.rows > 0,
            }
        )

    def _field(self, field: FieldTrust) -> FieldTrust:
        name = field_name(field.path)
        present = self.presence.probability(field.presence, name)
        written = self.writing.probability(field.writing, name)
        both = None if present is None or written is None else present * written
        return field.model_copy(update={"probability": both})

    def _end(self, end: EndTrust) -> EndTrust:
        return end.model_copy(
            update={"probability": self.ending.probability(end.ending, field_name(end.path))}
        )


def field_name(path: JsonPath) -> str:
    """A path as text in which every index is ``[]``, such as ``citations[].title``."""
    return "".join("[]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def fitted_answers(judged: Sequence[Judged]) -> Logistic:
    """As ``fitted``, of whole answers; those with problems have the name ``PROBLEMS``, whose offset is at most 0.

    By all tokens and the tagger: the other two order whole answers worse below some hundred rows, and no better above.
    """
    return fitted(judged, features=_ANSWER_FEATURES, lowering={PROBLEMS: _PROBLEMS_OFFSET})


def fitted(
    judged: Sequence[Judged],
    *,
    features: Sequence[int] = FEATURES,
    lowering: Mapping[str, float] | None = None,
) -> Logistic:
    """The regression over judged token probabilities, by maximum a posteriori.

    Few rows change little: the prior has the weights of no calibration, with no offsets of names. No weight is
    negative, since likelier tokens never make what they wrote less sure. ``features``: which are used. ``lowering``:
    names whose offset is at most 0, with the mean of its prior. Raises
    MissingDependencyError without SciPy.
    """
    try:
        from scipy.optimize import minimize  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError("scipy", "local", "calibration") from error

    lowering = lowering or {}
    names = sorted({one.name for one in judged if one.name} | lowering.keys())
    rows = np.array(
        [_features(one.tokens) for one in judged] + [[odds] * len(FEATURES) for odds, _ in _PSEUDO]
    )[:, list(features)]
    sides = np.array([1.0 if right else -1.0 for right in [*(j.is_right for j in judged), *_PSEUDO_RIGHT]])
    place = {name: at for at, name in enumerate(["", *names])}
    named = np.array([place[one.name] for one in judged] + [0] * len(_PSEUDO))
    # weights, then the bias at the place of no name, and offsets
    count = len(features)
    prior = np.array(
        [_WEIGHTS[one] for one in features] + [0.0] + [lowering.get(name, 0.0) for name in names]
    )
    spreads = np.array([_WEIGHT_SPREADS[one] for one in features] + [np.inf] + [_SPREAD] * len(names))
    strength = spreads**-2

    def loss(found: Any) -> tuple[float, Any]:
        shift = np.where(named > 0, found[count + named], 0.0) + found[count]
        margin = sides * (rows @ found[:count] + shift)
        away = found - prior
        slope = -sides * np.exp(-np.logaddexp(0.0, margin))
        by_name = np.bincount(named, weights=slope, minlength=len(place))
        by_name[0] = slope.sum()
        gradient = np.concatenate([slope @ rows, by_name]) + strength * away
        return np.logaddexp(0.0, -margin).sum() + strength @ away**2 / 2, gradient

    limits = [(None, 0.0 if name in lowering else None) for name in names]
    bounds = [(0.0, None)] * count + [(None, None), *limits]
    found = [float(x) for x in minimize(loss, prior, jac=True, bounds=bounds, method="L-BFGS-B").x]
    weight = dict(zip(features, found, strict=False))
    total, least, unmasked, tagged = (weight.get(one, 0.0) for one in FEATURES)
    return Logistic(
        weights=(total, least, unmasked, tagged),
        bias=found[count],
        offsets=dict(zip(names, found[count + 1 :], strict=True)),
    )


def _features(tokens: LogProbability) -> tuple[float, float, float, float]:
    """The log-odds, by ``FEATURES``; 0 for the tagger where it says nothing."""
    tagged = 0.0 if tokens.tagged is None else log_odds(tokens.tagged)
    return log_odds(tokens.total), log_odds(tokens.least), log_odds(tokens.unmasked), tagged


def log_odds(logarithm: float) -> float:
    """Log-odds of a probability given by its natural logarithm, within the limits of either side."""
    logarithm = min(logarithm, 0.0)
    rest = -math.expm1(logarithm)
    odds = _LIMIT if rest <= 0 else logarithm - math.log(rest)
    return max(-_LIMIT, min(_LIMIT, odds))


def _logistic(odds: float) -> float:
    return 1 / (1 + math.exp(-max(-2 * _LIMIT, min(2 * _LIMIT, odds))))
