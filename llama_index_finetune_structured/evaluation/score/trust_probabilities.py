"""Out-of-fold probabilities of scored answers: each by a calibration that was fitted without it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from ...errors import MissingDependencyError
from ...printable import package_logger
from ...trust.calibration import PROBLEMS, Calibration, Judged, field_name
from ...trust.cross_fitting import FEWEST_ANSWERS, JudgedAnswer, cross_fitted, fitted_calibration
from ..run.kept_trust import KeptTrust
from .metrics import ScoredAnswer

__all__ = ["calibration_of", "with_probabilities"]

_log = package_logger(__name__)


def with_probabilities(
    answers: Sequence[ScoredAnswer], documents: Sequence[str | None], schemas: Sequence[Hashable]
) -> list[ScoredAnswer]:
    """The answers, those to a schema with at least 20 judged answers with the probabilities of a cross-fit.

    ``documents``: of each answer; ``schemas``: whatever tells their schemas apart. Without scikit-learn there are no
    probabilities, which is logged.
    """
    found = list(answers)
    for schema in dict.fromkeys(schemas):
        places = [at for at, key in enumerate(schemas) if key == schema and _is_judged(answers[at])]
        if len(places) < FEWEST_ANSWERS:
            continue
        try:
            fits = cross_fitted([_judged(answers[at], documents[at]) for at in places])
        except MissingDependencyError as error:
            _log.warning("no calibrated probabilities: %s", error)
            return found
        for at, fit in zip(places, fits, strict=True):
            trust = answers[at].trust
            if trust is not None:
                found[at] = answers[at].model_copy(
                    update={"trust": _applied(fit, trust, answers[at].problems)}
                )
    return found


def calibration_of(answers: Sequence[ScoredAnswer], documents: Sequence[str | None]) -> Calibration | None:
    """The calibration of the answers that have out-of-fold probabilities; None where none has.

    Raises MissingDependencyError without scikit-learn.
    """
    judged, held_out = list[JudgedAnswer](), list[float]()
    for answer, document in zip(answers, documents, strict=True):
        if answer.trust is not None and answer.trust.probability is not None:
            judged.append(_judged(answer, document))
            held_out.append(answer.trust.probability)
    return fitted_calibration(judged, held_out) if judged else None


def _is_judged(answer: ScoredAnswer) -> bool:
    return answer.valid and answer.trust is not None and answer.trust.tokens is not None


def _judged(answer: ScoredAnswer, document: str | None) -> JudgedAnswer:
    trust = answer.trust
    if trust is None or trust.tokens is None:
        raise ValueError("no token probabilities are known")
    return JudgedAnswer(
        tokens=trust.tokens.tokens,
        is_right=answer.exact,
        presence=tuple(
            Judged(value.presence.tokens, field_name(value.path), value.is_due)
            for value in trust.values
            if value.presence is not None and value.is_due is not None
        ),
        writing=tuple(
            Judged(value.writing.tokens, field_name(value.path), value.is_right)
            for value in trust.values
            if value.writing is not None and value.is_right is not None
        ),
        ending=tuple(
            Judged(end.ending.tokens, field_name(end.path), end.is_complete)
            for end in trust.ends
            if end.ending is not None and end.is_complete is not None
        ),
        document=document,
        has_problems=bool(answer.problems),
    )


def _applied(calibration: Calibration, trust: KeptTrust, problems: Sequence[str]) -> KeptTrust:
    tokens = None if trust.tokens is None else trust.tokens.tokens
    values = []
    for value in trust.values:
        name = field_name(value.path)
        present = calibration.presence.probability(value.presence and value.presence.tokens, name)
        written = calibration.writing.probability(value.writing and value.writing.tokens, name)
        both = None if present is None or written is None else round(present * written, 4)
        values.append(value._replace(probability=both))
    probability = calibration.answer.probability(tokens, PROBLEMS if problems else "")
    return trust.model_copy(
        update={
            "values": tuple(values),
            "probability": None if probability is None else round(probability, 4),
        }
    )
