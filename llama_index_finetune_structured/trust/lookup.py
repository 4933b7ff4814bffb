"""``trust_of``: the trust in what LlamaIndex returned, an object, a response or an event."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from ..errors import ConfigurationError
from .answer_trust import Trust

__all__ = ["TRUST", "remember_trust", "trust_of"]

TRUST = "trust"
"""Key of the trust, as JSON, in the ``raw`` of a response."""

_remembered: dict[
    int, tuple[weakref.ref[BaseModel], Trust]
] = {}  # by id of the object, for as long as it lives


def remember_trust(answer: BaseModel, trust: Trust) -> None:
    """Keep the trust in an answer for as long as the object lives."""
    place = id(answer)
    _remembered[place] = weakref.ref(answer, lambda _: _remembered.pop(place, None)), trust


def trust_of(answer: Any) -> Trust:
    """How sure an answer is, field by field, and where it stands in the prompt.

    Args:
        answer: The object that a structured call returned, the response of a chat model or a query engine, or an
            event with one. A copy of an object, or one that was read from JSON, has none.

    Raises:
        ConfigurationError: Nothing is known of it.
    """
    for found in (answer, getattr(answer, "raw", None), getattr(answer, "response", None)):
        if isinstance(found, Mapping) and isinstance(found.get(TRUST), Mapping):
            return Trust.model_validate(found[TRUST])
        known = _remembered.get(id(found))
        if known is not None and known[0]() is found:
            return known[1]
    raise ConfigurationError(
        f"nothing is known of how sure this {type(answer).__name__} is: pass what a LoraLLM with confidence=True "
        "returned for a structured call: the object itself, no copy of it, or the response"
    )
