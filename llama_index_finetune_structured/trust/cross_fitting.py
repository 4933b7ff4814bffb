"""Fits calibrations on judged answers: one of all, and for each answer one of the other folds."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import MissingDependencyError
from .answer_trust import LogProbability
from .calibration import Calibration, Judged, Logistic, answer_logarithms, fitted, logarithms

__all__ = ["FEWEST_ANSWERS", "JudgedAnswer", "JudgedEnd", "JudgedValue", "cross_fitted", "fitted_calibration"]

FEWEST_ANSWERS = 20
"""Chosen: of fewer, even the share of right answers is known to no better than 22 points."""
_FOLDS = 5


class JudgedValue(NamedTuple):
    """A value of an answer, judged by gold.

    ``name``: of its field. ``is_due``: whether gold has a value there. ``is_right``: whether it is gold's; None where
    gold has none. None: not known. The others are as those of ``FieldTrust``.
    """

    name: str
    presence: LogProbability | None
    writing: LogProbability | None
    is_due: bool | None
    is_right: bool | None


class JudgedEnd(NamedTuple):
    """The end of a list or object, judged by gold. ``name``: of its field. None: not known."""

    name: str
    ending: LogProbability | None
    is_complete: bool | None


@dataclass(frozen=True)
class JudgedAnswer:
    """An answer, its values and its ends, judged by gold. ``document``: answers of one are in one fold; None: own."""

    tokens: LogProbability
    is_right: bool
    values: tuple[JudgedValue, ...] = ()
    ends: tuple[JudgedEnd, ...] = ()
    document: str | None = None


def fitted_calibration(answers: Sequence[JudgedAnswer], held_out: Sequence[float]) -> Calibration:
    """The calibration of all these answers.

    ``held_out``: for each of them, its probability by a fit without it. Raises MissingDependencyError.
    """
    pairs = zip(held_out, answers, strict=True)
    return _calibration(answers).model_copy(
        update={"held_out": tuple((probability, answer.is_right) for probability, answer in pairs)}
    )


def cross_fitted(answers: Sequence[JudgedAnswer]) -> list[Calibration]:
    """For each answer the calibration of the folds that it is not in; answers of one document share a fold.

    ``answers``: at least two. Raises MissingDependencyError without scikit-learn.
    """
    found: list[Calibration] = [Calibration()] * len(answers)
    for train, test in _folds(answers):
        calibration = _calibration([answers[at] for at in train])
        for at in test:
            found[at] = calibration
    return found


def _folds(answers: Sequence[JudgedAnswer]) -> list[tuple[list[int], list[int]]]:
    try:
        from sklearn.model_selection import StratifiedGroupKFold  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError("scikit-learn", "local", "calibration") from error

    groups = [answer.document or f"row {at}" for at, answer in enumerate(answers)]
    if len({*groups}) < 2:  # one document: its answers are not independent, and there is nothing better
        groups = [f"row {at}" for at in range(len(answers))]
    right = [answer.is_right for answer in answers]
    splitter = StratifiedGroupKFold(min(_FOLDS, len({*groups})), shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # fewer right or wrong answers than folds
        folds = list(splitter.split(right, right, groups))
    return [(train.tolist(), test.tolist()) for train, test in folds]


def _calibration(answers: Sequence[JudgedAnswer]) -> Calibration:
    values = [value for answer in answers for value in answer.values]
    by_value = Calibration(
        presence=_fitted((value.presence, value.name, value.is_due) for value in values),
        writing=_fitted((value.writing, value.name, value.is_right) for value in values),
        ending=_fitted((end.ending, end.name, end.is_complete) for answer in answers for end in answer.ends),
        rows=len(answers),
    )
    answer = fitted([Judged(_answer_logarithms(by_value, one), "", one.is_right) for one in answers])
    return by_value.model_copy(update={"answer": answer})


def _fitted(judgements: Iterable[tuple[LogProbability | None, str, bool | None]]) -> Logistic:
    """The regression over tokens, by field, of those that are known and were judged."""
    return fitted(
        [
            Judged(found, name, is_right)
            for tokens, name, is_right in judgements
            if (found := logarithms(tokens)) is not None and is_right is not None
        ]
    )


def _answer_logarithms(calibration: Calibration, answer: JudgedAnswer) -> tuple[float, float]:
    values = [
        calibration.value_probability(value.presence, value.writing, value.name) for value in answer.values
    ]
    return answer_logarithms(answer.tokens, values)
