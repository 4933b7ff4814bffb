"""Calibration: from token probabilities of an answer to the probability that it is right, by logistic regression.

Platt scaling (https://home.cs.colorado.edu/~mozer/Teaching/syllabi/6622/papers/Platt1999.pdf) on the log-odds of the
tokens' probabilities. Fitted on held-out answers; kept and applied as JSON.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ..errors import MissingDependencyError
from .answer_trust import EndTrust, FieldTrust, LogProbability, Trust
from .json_spans import JsonPath

__all__ = ["Calibration", "Judged", "Logistic", "answer_logarithms", "field_name", "fitted", "logarithms"]

_LIMIT = 12.0  # of log-odds; chosen: a probability of 6e-6, beyond what held-out rows can tell
_LEAST = math.exp(-_LIMIT)
# Standard deviations of the prior. Chosen on random splits of two models' answers: the likelihood of the others is
# greater than with 1 at 20 to 50 rows, and no smaller at 175.
_SLOPE_SPREAD = 0.5  # of the first weight, around 1
_SPREAD = 1.0  # of the other weights and the offsets, around 0
# A right and a wrong answer that are always added, so that the regression has both kinds.
_PSEUDO = ((_LIMIT / 2, True), (-_LIMIT / 2, False))
_PSEUDO_RIGHT = tuple(is_right for _, is_right in _PSEUDO)


class Judged(NamedTuple):
    """Logarithms of probabilities, each at most 0, with a judgement of what they are the probabilities of.

    ``name``: of the field; empty for whole answers.
    """

    logarithms: Sequence[float]
    name: str
    is_right: bool


class Logistic(BaseModel):
    """A logistic regression on the log-odds of probabilities.

    Attributes:
        weights: Of the log-odds of each probability.
        bias: Added to their sum.
        offsets: Added for a field, by its name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: tuple[float, ...] = (1.0,)
    bias: float = 0.0
    offsets: dict[str, float] = {}

    def probability(self, logarithms: Sequence[float] | None, name: str = "") -> float | None:
        """The probability that what was judged is right; None where its probabilities are not known.

        Args:
            logarithms: Logarithms of the probabilities, one for each weight; those behind the last weight do not
                count.
            name: Name of the field.
        """
        if logarithms is None:
            return None
        odds = sum(weight * _log_odds(one) for weight, one in zip(self.weights, logarithms, strict=False))
        return _logistic(odds + self.bias + self.offsets.get(name, 0.0))


class Calibration(BaseModel):
    """What held-out answers tell of token probabilities.

    Attributes:
        answer: Whether a whole answer is right, by its tokens and by the probabilities of its values.
        presence: Whether a value that is there ought to be there.
        writing: Whether a value that ought to be there is right.
        ending: Whether nothing is missing in a list or object.
        rows: Held-out answers that it was fitted on; 0: none, and probabilities are the products of the tokens'.
        held_out: Of each of them, the probability by a fit without it, and whether it was right.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    answer: Logistic = Logistic()
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
        fields = tuple(self._field(field) for field in trust.fields)
        return trust.model_copy(
            update={
                "probability": self.answer_probability(trust.tokens, [field.probability for field in fields]),
                "fields": fields,
                "ends": tuple(self._end(end) for end in trust.ends),
                "calibrated": self.rows > 0,
            }
        )

    def answer_probability(
        self, tokens: LogProbability | None, values: Iterable[float | None]
    ) -> float | None:
        """The probability that a whole answer is right; None for unknown tokens.

        Args:
            tokens: All tokens of the answer.
            values: Probabilities of its values, by ``value_probability``.
        """
        return None if tokens is None else self.answer.probability(answer_logarithms(tokens, values))

    def value_probability(
        self, presence: LogProbability | None, writing: LogProbability | None, name: str
    ) -> float | None:
        """The probability that a value is right; None for unknown tokens.

        Args:
            presence: The tokens by which there is a value.
            writing: The value's own tokens.
            name: Name of the field.
        """
        present = self.presence.probability(logarithms(presence), name)
        written = self.writing.probability(logarithms(writing), name)
        return None if present is None or written is None else present * written

    def _field(self, field: FieldTrust) -> FieldTrust:
        both = self.value_probability(field.presence, field.writing, field_name(field.path))
        return field.model_copy(update={"probability": both})

    def _end(self, end: EndTrust) -> EndTrust:
        found = self.ending.probability(logarithms(end.ending), field_name(end.path))
        return end.model_copy(update={"probability": found})


def logarithms(tokens: LogProbability | None) -> tuple[float, float, float] | None:
    """Of all tokens among the allowed ones, of the least likely of them, and of all in the whole vocabulary."""
    return None if tokens is None else (tokens.total, tokens.least, tokens.unmasked)


def answer_logarithms(tokens: LogProbability, values: Iterable[float | None]) -> tuple[float, float]:
    """Of all tokens of an answer, and of all its values being right.

    ``values``: the probabilities of them. Where one is not known, the tokens stand for all.
    """
    known = list(values)
    if any(value is None for value in known):
        return tokens.total, tokens.total
    return tokens.total, sum(math.log(max(value, _LEAST)) for value in known if value is not None)


def field_name(path: JsonPath) -> str:
    """A path as text in which every index is ``[]``, such as ``citations[].title``."""
    return "".join("[]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def fitted(judged: Sequence[Judged]) -> Logistic:
    """The regression over judged probabilities, of each as many, by maximum a posteriori.

    Few rows change little: the prior is the first probability as it is, with no offsets of names. No weight is
    negative, since likelier tokens never make what they wrote less sure. Raises MissingDependencyError without SciPy.
    """
    try:
        from scipy.optimize import minimize  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError("scipy", "local", "calibration") from error

    names = sorted({one.name for one in judged if one.name})
    features = len(judged[0].logarithms) if judged else 1
    rows = np.array(
        [[_log_odds(logarithm) for logarithm in one.logarithms] for one in judged]
        + [[odds] * features for odds, _ in _PSEUDO]
    )
    sides = np.array([1.0 if right else -1.0 for right in [*(j.is_right for j in judged), *_PSEUDO_RIGHT]])
    place = {name: at for at, name in enumerate(["", *names])}
    named = np.array([place[one.name] for one in judged] + [0] * len(_PSEUDO))
    size = features + len(place)  # weights, then the bias at the place of no name, and offsets
    prior = np.array([1.0] + [0.0] * (size - 1))
    strength = np.array(
        [_SLOPE_SPREAD**-2] + [_SPREAD**-2] * (features - 1) + [0.0] + [_SPREAD**-2] * len(names)
    )

    def loss(found: Any) -> tuple[float, Any]:
        shift = np.where(named > 0, found[features + named], 0.0) + found[features]
        margin = sides * (rows @ found[:features] + shift)
        away = found - prior
        slope = -sides * np.exp(-np.logaddexp(0.0, margin))
        by_name = np.bincount(named, weights=slope, minlength=len(place))
        by_name[0] = slope.sum()
        gradient = np.concatenate([slope @ rows, by_name]) + strength * away
        return np.logaddexp(0.0, -margin).sum() + strength @ away**2 / 2, gradient

    bounds = [(0.0, None)] * features + [(None, None)] * len(place)
    found = [float(x) for x in minimize(loss, prior, jac=True, bounds=bounds, method="L-BFGS-B").x]
    return Logistic(
        weights=tuple(found[:features]),
        bias=found[features],
        offsets=dict(zip(names, found[features + 1 :], strict=True)),
    )


def _log_odds(logarithm: float) -> float:
    """Log-odds of a probability given by its natural logarithm, within the limits of either side."""
    logarithm = min(logarithm, 0.0)
    rest = -math.expm1(logarithm)
    odds = _LIMIT if rest <= 0 else logarithm - math.log(rest)
    return max(-_LIMIT, min(_LIMIT, odds))


def _logistic(odds: float) -> float:
    return 1 / (1 + math.exp(-max(-2 * _LIMIT, min(2 * _LIMIT, odds))))
