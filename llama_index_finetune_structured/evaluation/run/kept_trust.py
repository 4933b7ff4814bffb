"""What is kept of the trust in an answer: token probabilities of its values and ends, and what gold says of them."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from ...errors import ConfigurationError
from ...trust.answer_trust import LogProbability, Trust
from ...trust.json_spans import JsonPath
from ...trust.lookup import trust_of

__all__ = ["KeptEnd", "KeptTrust", "KeptValue", "TokenScores", "kept_trust"]

_DIGITS = 4  # significant ones; chosen: far finer than held-out rows can tell apart


class TokenScores(NamedTuple):
    """The numbers of a ``LogProbability``, to four significant digits; an array in JSON."""

    total: float
    least: float
    unmasked: float
    tagged: float | None = None

    @classmethod
    def of(cls, tokens: LogProbability | None) -> TokenScores | None:
        """Those of some tokens; None for unknown ones."""
        if tokens is None:
            return None
        tagged = None if tokens.tagged is None else _rounded(tokens.tagged)
        return cls(_rounded(tokens.total), _rounded(tokens.least), _rounded(tokens.unmasked), tagged)

    @property
    def tokens(self) -> LogProbability:
        """As a ``LogProbability``."""
        return LogProbability(**self._asdict())


class KeptValue(NamedTuple):
    """One value of an answer; an array in JSON.

    ``presence`` and ``writing``: as of ``FieldTrust``. ``evidence``: the text in the prompt, None where it was not
    found. ``is_due``: whether gold has a value there. ``is_right``: whether the value is gold's; None where gold has
    none. ``probability``: that both are so, by a calibration on other rows. None: not known.
    """

    path: JsonPath
    presence: TokenScores | None
    writing: TokenScores | None
    evidence: str | None = None
    is_due: bool | None = None
    is_right: bool | None = None
    probability: float | None = None


class KeptEnd(NamedTuple):
    """The end of a list or object of an answer; an array in JSON.

    ``is_complete``: whether it has all that gold has there. None: not known.
    """

    path: JsonPath
    ending: TokenScores | None
    is_complete: bool | None = None


class KeptTrust(BaseModel):
    """The trust in an answer without the values, which the answer has.

    Attributes:
        tokens: Log-probabilities of all tokens of the answer, as of ``LogProbability``.
        values: Its values, in the order of the answer.
        ends: Its lists and objects.
        probability: That the whole answer is right, by a calibration on other rows of the scorecard; None where
            none could be fitted, or no token probabilities are known.
        given: The probability that came with the answer.
        answered_by: Name of the model that answered; None where not known.
        sure: Of a cascade's answer, whether it reached the threshold or is the teacher's, and has no problems.
        problems: As of ``Trust``.
    """

    model_config = ConfigDict(frozen=True)

    tokens: TokenScores | None = None
    values: tuple[KeptValue, ...] = ()
    ends: tuple[KeptEnd, ...] = ()
    probability: float | None = None
    given: float | None = None
    answered_by: str | None = None
    sure: bool | None = None
    problems: tuple[str, ...] = ()


def kept_trust(answer: Any) -> KeptTrust | None:
    """What is kept of the trust in a system's object or response; None where nothing is known of it."""
    try:
        trust = trust_of(answer)
    except (ConfigurationError, ValueError):  # another system's "trust" has another form
        return None
    return _kept(trust)


def _kept(trust: Trust) -> KeptTrust:
    of = TokenScores.of
    return KeptTrust(
        tokens=of(trust.tokens),
        values=tuple(
            KeptValue(
                field.path,
                of(field.presence),
                of(field.writing),
                None if field.evidence is None else field.evidence.text,
            )
            for field in trust.fields
        ),
        ends=tuple(KeptEnd(end.path, of(end.ending)) for end in trust.ends),
        given=None if trust.probability is None else _rounded(trust.probability),
        answered_by=trust.answered_by or None,
        sure=trust.sure,
        problems=trust.problems,
    )


def _rounded(number: float) -> float:
    return float(f"{number:.{_DIGITS}g}")
