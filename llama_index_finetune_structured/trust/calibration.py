"""Calibration: from token probabilities of an answer to the probability that it is right, by logistic regression.

Platt scaling (https://home.cs.colorado.edu/~mozer/Teaching/syllabi/6622/papers/Platt1999.pdf) on the log-odds of the
tokens' probabilities. Fitted on held-out answers by scikit-learn; kept and applied as JSON.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from ..errors import MissingDependencyError
from .answer_trust import EndTrust, FieldTrust, LogProbability, Trust
from .json_spans import JsonPath

__all__ = ["Calibration", "Judged", "Logistic", "field_name", "fitted"]

_LIMIT = 12.0  # of log-odds; chosen: a probability of 6e-6, beyond what held-out rows can tell
_STRENGTH = 1.0  # inverse of the regularisation, scikit-learn's default
# A right and a wrong answer that are always added, so that the regression has both kinds and few rows say little.
_PSEUDO = ((_LIMIT / 2, True), (-_LIMIT / 2, False))
_FEATURES = 3


class Judged(NamedTuple):
    """Token probabilities with a judgement of what they wrote. ``name``: of the field; empty for whole answers."""

    tokens: LogProbability
    name: str
    is_right: bool


class Logistic(BaseModel):
    """A logistic regression on the log-odds of token probabilities.

    Attributes:
        weights: Of the log-odds of all tokens among the allowed ones, of the least likely token, and of all tokens
            in the whole vocabulary.
        bias: Added to their sum.
        offsets: Added for a field, by its name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: tuple[float, float, float] = (1.0, 0.0, 0.0)
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
        answer: Whether a whole answer is right.
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
        return trust.model_copy(
            update={
                "probability": self.answer.probability(trust.tokens),
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


def fitted(judged: Sequence[Judged]) -> Logistic:
    """The regression over judged token probabilities. Names get offsets, shrunken where they are few.

    No weight is negative: likelier tokens never make an answer less sure, whatever few rows suggest. Raises
    MissingDependencyError without scikit-learn.
    """
    kept = list(range(_FEATURES))
    while True:
        found = _regression(judged, kept)
        negative = {place for place in kept if found.weights[place] < 0}
        if not negative:
            return found
        kept = [place for place in kept if place not in negative]


def _regression(judged: Sequence[Judged], kept: Sequence[int]) -> Logistic:
    """The regression on some of the features, and on the names."""
    try:
        from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError("scikit-learn", "local", "calibration") from error

    names = sorted({one.name for one in judged if one.name})
    places = {name: len(kept) + n for n, name in enumerate(names)}
    rows = [[_features(one.tokens)[place] for place in kept] + [0.0] * len(names) for one in judged]
    for row, one in zip(rows, judged, strict=True):
        if one.name:
            row[places[one.name]] = 1.0
    rows += [[odds] * len(kept) + [0.0] * len(names) for odds, _ in _PSEUDO]
    labels = [one.is_right for one in judged] + [is_right for _, is_right in _PSEUDO]
    if not rows[0]:  # all weights were negative: what is left is the share of right ones
        share = sum(labels) / len(labels)
        return Logistic(weights=(0.0, 0.0, 0.0), bias=math.log(share / (1 - share)))
    model = LogisticRegression(C=_STRENGTH, max_iter=1000).fit(rows, labels)
    found = [float(weight) for weight in model.coef_[0]]
    weights = dict(zip(kept, found, strict=False))
    return Logistic(
        weights=(weights.get(0, 0.0), weights.get(1, 0.0), weights.get(2, 0.0)),
        bias=float(model.intercept_[0]),
        offsets={name: found[place] for name, place in places.items()},
    )


def _features(tokens: LogProbability) -> tuple[float, float, float]:
    return _log_odds(tokens.total), _log_odds(tokens.least), _log_odds(tokens.unmasked)


def _log_odds(logarithm: float) -> float:
    """Log-odds of a probability given by its natural logarithm, within the limits of either side."""
    logarithm = min(logarithm, 0.0)
    rest = -math.expm1(logarithm)
    odds = _LIMIT if rest <= 0 else logarithm - math.log(rest)
    return max(-_LIMIT, min(_LIMIT, odds))


def _logistic(odds: float) -> float:
    return 1 / (1 + math.exp(-max(-2 * _LIMIT, min(2 * _LIMIT, odds))))
