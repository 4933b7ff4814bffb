"""How sure a structured answer is: as a whole, by field, and of nothing being missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue

from ..example import canonical_json, compact_json, json_span, loads
from ..notebook_html import escape, plain_table
from .json_spans import JsonPath, json_spans
from .tokens import AnswerToken, TokenPlaces

__all__ = [
    "EndTrust",
    "Evidence",
    "FieldTrust",
    "LogProbability",
    "Trust",
    "merged_trust",
    "trust_in_rest",
    "trust_in_tokens",
]

_LEAST = -1000.0  # of one token; chosen: JSON has no infinity, and this is as impossible


class LogProbability(BaseModel):
    """Natural logarithms of token probabilities, all at most 0.

    Attributes:
        total: Sum over the tokens, each among those that the grammar allowed.
        least: Of the least likely token among those.
        unmasked: Sum over the tokens, each among the whole vocabulary.
        tagged: By the adapter's tagger of words, of the least likely label that the answer gives a word of the
            messages, by the tagger's share of the log-odds; None where there is no tagger, or no word that it knows
            the labels of.
    """

    model_config = ConfigDict(frozen=True)

    total: float
    least: float
    unmasked: float
    tagged: float | None = None

    @classmethod
    def of(cls, tokens: Sequence[AnswerToken]) -> LogProbability:
        """Those of some tokens; all 0 for none.

        Args:
            tokens: The tokens.
        """
        if not tokens:
            return cls(total=0.0, least=0.0, unmasked=0.0)
        allowed = [max(token.allowed, _LEAST) for token in tokens]
        unmasked = sum(max(token.unmasked, _LEAST) for token in tokens)
        return cls(total=sum(allowed), least=min(allowed), unmasked=unmasked)

    def joined(self, others: Iterable[LogProbability]) -> LogProbability:
        """Those of several runs of tokens together.

        Args:
            others: The other runs.
        """
        every = (self, *others)
        return LogProbability(
            total=sum(one.total for one in every),
            least=min(one.least for one in every),
            unmasked=sum(one.unmasked for one in every),
            tagged=min((one.tagged for one in every if one.tagged is not None), default=None),
        )


class Evidence(BaseModel):
    """Where a value stands in the messages of its call, and in the retrieved node that this text is from.

    Attributes:
        text: The text there, which may spell the value otherwise.
        message: Index of the message.
        start: Offset of the text in the message's ``content``, in characters.
        end: Offset behind the text.
        node_id: Of a query engine's answer, id of the source node that the text is from; None where it is from none.
        node_start: Offset of the text in ``node.get_content(metadata_mode=MetadataMode.LLM)``.
        node_end: Offset behind the text there.
    """

    model_config = ConfigDict(frozen=True)

    text: str
    message: int
    start: int
    end: int
    node_id: str | None = None
    node_start: int | None = None
    node_end: int | None = None


class FieldTrust(BaseModel):
    """How sure one value of an answer is.

    Attributes:
        path: Keys and indices that lead to the value.
        value: The value: a text, number, boolean or null, or an empty list or object.
        probability: That the value is right; None where no token probabilities are known.
        evidence: Where it stands in the messages; None where it was not found there. Booleans, null, empty texts and
            empty lists and objects are not searched.
        presence: Of the tokens by which there is a value: key, and of a list's item the comma before it.
        writing: Of the value's own tokens.
    """

    model_config = ConfigDict(frozen=True)

    path: JsonPath
    value: JsonValue
    probability: float | None = None
    evidence: Evidence | None = None
    presence: LogProbability | None = None
    writing: LogProbability | None = None


class EndTrust(BaseModel):
    """How sure it is that nothing is missing in one list or object of an answer.

    Attributes:
        path: Keys and indices that lead to the list or object.
        probability: That it has every item, or every key that may be left out; None where that is not known.
        ending: Of the tokens that end it, where another item or key could have followed.
    """

    model_config = ConfigDict(frozen=True)

    path: JsonPath
    probability: float | None = None
    ending: LogProbability | None = None


class Trust(BaseModel):
    """How sure an answer is, and where it comes from.

    Attributes:
        probability: That the whole answer is right; None where no token probabilities are known.
        fields: Its values, in the order of the answer.
        ends: Its lists and objects.
        calibrated: Whether the probabilities were calibrated on held-out rows; else they are the products of the
            tokens' probabilities, which order answers but are no frequencies.
        answered_by: Name of the model that answered.
        sure: Of a cascade's answer, whether it reached the threshold or is the teacher's, and has no problems; None
            where there is none.
        problems: Values with two meanings, of which the likelier one was taken, and broken rules.
        tokens: Of all tokens of the answer.
    """

    model_config = ConfigDict(frozen=True)

    probability: float | None = None
    fields: tuple[FieldTrust, ...] = ()
    ends: tuple[EndTrust, ...] = ()
    calibrated: bool = False
    answered_by: str = ""
    sure: bool | None = None
    problems: tuple[str, ...] = ()
    tokens: LogProbability | None = None

    def _repr_html_(self) -> str:
        """The values with their probabilities and evidence, for notebooks."""
        rows = [
            (
                ".".join(map(str, field.path)) or "answer",
                compact_json(field.value),
                _percent(field.probability),
                "" if field.evidence is None else field.evidence.text,
            )
            for field in self.fields
        ]
        kind = "calibrated" if self.calibrated else "not calibrated"
        whole = f"Whole answer: {_percent(self.probability)} ({kind})"
        return f"<p>{escape(whole)}</p>{plain_table(('value of', 'value', 'right', 'stands in the text as'), rows)}"


def _percent(probability: float | None) -> str:
    return "–" if probability is None else f"{probability:.0%}"


def trust_in_tokens(text: str, tokens: Sequence[AnswerToken] = ()) -> Trust | None:
    """The trust in an answer by its tokens, without probabilities yet.

    None where the text has no JSON. ``tokens`` may end with a stop token; where they are not the text's, or the text
    is more than its JSON, nothing is known of how sure the answer is.
    """
    try:
        inner = json_span(text)
        spans, value = json_spans(inner), loads(inner)
    except ValueError:
        return None
    of = _probabilities(inner, tokens)
    leads = {span.path: of(span.lead, span.start) for span in spans}
    return Trust(
        fields=tuple(
            FieldTrust(
                path=span.path,
                value=found,
                presence=_joined(leads[span.path[:depth]] for depth in range(len(span.path), 0, -1))
                or leads[span.path],
                writing=of(span.start, span.stop),
            )
            for span in spans
            if not isinstance(found := _value_at(value, span.path), dict | list) or not found
        ),
        ends=tuple(
            EndTrust(path=span.path, ending=of(span.ending, span.stop))
            for span in spans
            if span.ending is not None
        ),
        tokens=None if of(0, len(inner)) is None else LogProbability.of(tokens),
    )


def _probabilities(text: str, tokens: Sequence[AnswerToken]) -> Callable[[int, int], LogProbability | None]:
    """Of the tokens of some characters; None where the tokens are not those of the text."""
    try:
        places = TokenPlaces(text, [token.text for token in tokens])
    except ValueError:
        return lambda _start, _stop: None
    return lambda start, stop: LogProbability.of(tokens[places.between(start, stop)])


def _joined(every: Iterable[LogProbability | None]) -> LogProbability | None:
    """Of several runs of tokens; None where there are none, or one is not known."""
    first, *others = [*every] or [None]
    known = [one for one in others if one is not None]
    return None if first is None or len(known) < len(others) else first.joined(known)


def trust_in_rest(trust: Trust, value: Any) -> Trust:
    """The trust in an answer of which values at the ends of lists were left out.

    Args:
        trust: The trust in the whole answer.
        value: What is left of it.
    """
    return trust.model_copy(
        update={
            "fields": tuple(field for field in trust.fields if _has(value, field.path)),
            "ends": tuple(end for end in trust.ends if _has(value, end.path)),
        }
    )


def _has(value: Any, path: JsonPath) -> bool:
    try:
        _value_at(value, path)
    except LookupError:
        return False
    return True


def _value_at(value: Any, path: JsonPath) -> Any:
    for part in path:
        value = value[part]
    return value


def merged_trust(value: Any, parts: Sequence[tuple[Any, Trust]]) -> Trust:
    """The trust in an answer that was merged of several, without probabilities yet.

    Values and items of lists come from the first part that has an equal one there; of others nothing is known. A list
    or object is complete where it is in every part that has it. ``parts``: the values and their trusts.
    """
    known = [_Part(*part) for part in parts]
    fields, ends = list[FieldTrust](), list[EndTrust]()
    for span in json_spans(compact_json(value)):
        leaf, places = _value_at(value, span.path), _places(value, span.path)
        if not (isinstance(leaf, dict | list) and leaf):
            found = next(
                filter(None, (part.field(*places) for part in known)), FieldTrust(path=(), value=leaf)
            )
            fields.append(found.model_copy(update={"path": span.path}))
        if span.ending is not None:
            endings = list(filter(None, (part.ending(*places) for part in known)))
            ends.append(EndTrust(path=span.path, ending=_joined(endings)))
    every = [trust.tokens for _, trust in parts if trust.tokens is not None]
    return Trust(fields=tuple(fields), ends=tuple(ends), tokens=_joined(every))


_Place = tuple[
    JsonPath, str, JsonPath
]  # of an item's list, or of a value in none; the item or value; inside the item


def _places(value: Any, path: JsonPath) -> _Place:
    """Where a value stands, told by the item of the outermost list that holds it and not by that item's index."""
    depth = next((depth for depth, part in enumerate(path) if isinstance(part, int)), None)
    if depth is None:
        leaf = _value_at(value, path)
        return path, "" if isinstance(leaf, dict | list) else canonical_json(leaf), ()
    return path[:depth], canonical_json(_value_at(value, path[: depth + 1])), path[depth + 1 :]


class _Part:
    """One of the answers that were merged, by the places of its values."""

    def __init__(self, value: Any, trust: Trust) -> None:
        self._fields = {_places(value, field.path): field for field in reversed(trust.fields)}
        self._ends = {_places(value, end.path): end.ending for end in reversed(trust.ends)}

    def field(self, *place: Any) -> FieldTrust | None:
        """The value at a place; None where it is another one, or there is none."""
        return self._fields.get(place)

    def ending(self, *place: Any) -> LogProbability | None:
        """The end of the list or object at a place."""
        return self._ends.get(place)
