"""How sure a value is and where it stands in the prompt, as HTML beside the value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...trust.calibration import field_name
from ...trust.json_spans import JsonPath
from ..run.kept_trust import KeptTrust, KeptValue
from ..score.metrics import ScoredAnswer
from .markup import escape
from .text import percent

__all__ = ["TrustNotes", "evidenced_fields"]

_CHARACTERS = 80  # chosen: of a piece of evidence, which is often as long as the value beside it


def evidenced_fields(answers: Iterable[ScoredAnswer]) -> frozenset[str]:
    """The fields of which some value stands in a prompt: a value of another one need not."""
    trusts = (answer.trust for answer in answers if answer.trust is not None)
    values = (value for trust in trusts for value in trust.values)
    return frozenset(field_name(value.path) for value in values if value.evidence is not None)


class TrustNotes:
    """Notes on the values of one answer; empty ones where nothing is known.

    ``evidenced``: the fields whose values usually stand in the prompt.
    """

    def __init__(self, trust: KeptTrust | None = None, evidenced: frozenset[str] = frozenset()) -> None:
        self._trust, self._evidenced = trust, evidenced

    def of_answer(self) -> str:
        """That of the whole answer."""
        probability = None if self._trust is None else self._trust.probability
        return "" if probability is None else f" <span class='sure'>{percent(probability)} sure</span>"

    def of(self, place: JsonPath) -> str:
        """That of the value at a place, or of all values in it together."""
        return self._note([value for value in self._values() if value.path[: len(place)] == place], place)

    def of_items(self, place: JsonPath, count: int) -> list[str]:
        """Those of the items of a list."""
        items: list[list[KeptValue]] = [[] for _ in range(count)]
        depth = len(place)
        for value in self._values():
            number = value.path[depth] if len(value.path) > depth and value.path[:depth] == place else None
            if isinstance(number, int) and number < count:
                items[number].append(value)
        return [self._note(values, (*place, number)) for number, values in enumerate(items)]

    def _values(self) -> Sequence[KeptValue]:
        return () if self._trust is None else self._trust.values

    def _note(self, values: Sequence[KeptValue], place: JsonPath) -> str:
        """The least probability of the values, a single one's evidence, and which ones are not in the text."""
        known = [value.probability for value in values if value.probability is not None]
        parts = [f"{percent(min(known))} sure"] if known else []
        if len(values) == 1 and values[0].evidence is not None:
            text = values[0].evidence
            parts.append(f"“{text if len(text) <= _CHARACTERS else text[:_CHARACTERS] + '…'}”")
        if absent := [value.path[len(place) :] for value in values if self._is_absent(value)]:
            names = ", ".join(filter(None, map(field_name, absent)))
            parts.append(f"{names} not in the text" if names else "not in the text")
        return f" <span class='sure'>{escape('; '.join(parts))}</span>" if parts else ""

    def _is_absent(self, value: KeptValue) -> bool:
        return value.evidence is None and field_name(value.path) in self._evidenced
