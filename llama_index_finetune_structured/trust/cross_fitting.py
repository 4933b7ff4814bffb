"""Fits calibrations on judged answers: one of all, and for each answer one of the other folds."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import MissingDependencyError
from .answer_trust import LogProbability
from .calibration import PROBLEMS, Calibration, Judged, fitted, fitted_answers

__all__ = ["FEWEST_ANSWERS", "JudgedAnswer", "cross_fitted", "fitted_calibration"]

FEWEST_ANSWERS = 20
"""Chosen: of fewer, even the share of right answers is known to no better than 22 points."""
_FOLDS = 5


@dataclass(frozen=True)
class JudgedAnswer:
    """An answer, its values and its ends, judged by gold. ``document``: answers of one are in one fold; None: own.

    ``has_problems``: whether it breaks a rule, or has a value with two meanings.
    """

    tokens: LogProbability
    is_right: bool
    presence: tuple[Judged, ...] = ()
    writing: tuple[Judged, ...] = ()
    ending: tuple[Judged, ...] = ()
    document: str | None = None
    has_problems: bool = False

    @property
    def judged(self) -> Judged:
        """The whole answer."""
        return Judged(self.tokens, PROBLEMS if self.has_problems else "", self.is_right)


def fitted_calibration(answers: Sequence[JudgedAnswer], held_out: Sequence[float]) -> Calibration:
    """The calibration of all these answers.

    ``held_out``: for each of them, its probability by a fit without it; those with problems count as 0, since no
    threshold accepts them. Raises MissingDependencyError.
    """
    pairs = tuple(
        (0.0 if answer.has_problems else probability, answer.is_right)
        for probability, answer in zip(held_out, answers, strict=True)
    )
    return _calibration(answers).model_copy(update={"held_out": pairs})


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
    return Calibration(
        answer=fitted_answers([answer.judged for answer in answers]),
        presence=fitted([one for answer in answers for one in answer.presence]),
        writing=fitted([one for answer in answers for one in answer.writing]),
        ending=fitted([one for answer in answers for one in answer.ending]),
        rows=len(answers),
    )
