"""``trust_of``: the trust in what LlamaIndex returned, an object, a response or an event."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

from pydantic import BaseModel

from ..errors import ConfigurationError
from ..example import json_span, loads
from .answer_trust import Trust

__all__ = ["TRUST", "claim_last_answer", "note_answer", "remember_trust", "trust_in_raw", "trust_of"]

TRUST = "trust"
"""Key of the trust, as JSON, in the ``raw`` of a response."""

_MOST_HOLDERS = 4  # chosen: an event has a response, which has an object; LlamaIndex nests no deeper


class _LastAnswer(NamedTuple):
    """The last answer of a chat in a thread or task. ``has_object``: its object is known, so others are not its."""

    text: str
    raw: Any
    has_object: bool = False


_last_answer: ContextVar[_LastAnswer | None] = ContextVar("last_answer", default=None)
_remembered: dict[int, tuple[weakref.ref[Any], str]] = {}  # trust as JSON, by id of an object, while it lives


def remember_trust(answer: Any, trust: Trust) -> None:
    """Keep the trust in an answer for as long as the object lives.

    Not of objects that cannot be weakly referenced, as those of classes with ``__slots__`` alone.

    Args:
        answer: The object.
        trust: The trust, which is kept as JSON: it is a tenth of the size.
    """
    place = id(answer)

    def forget(reference: weakref.ref[Any]) -> None:
        if (known := _remembered.get(place)) is not None and known[0] is reference:
            del _remembered[place]

    try:
        reference = weakref.ref(answer, forget)
    except TypeError:
        return
    _remembered[place] = reference, trust.model_dump_json()


def trust_in_raw(raw: Any) -> Trust | None:
    """The trust in the ``raw`` of a response; None where it has none.

    Args:
        raw: The attribute of the response.
    """
    found = raw.get(TRUST) if isinstance(raw, Mapping) else None
    return Trust.model_validate(found) if isinstance(found, Mapping) else None


def note_answer(text: str, raw: Any) -> None:
    """Note the answer of a chat: a Pydantic program makes its object of the text alone.

    Args:
        text: The text of the response.
        raw: Its attribute of that name, with the trust.
    """
    if isinstance(raw, Mapping) and TRUST in raw:
        _last_answer.set(_LastAnswer(text, raw))


def claim_last_answer() -> None:
    """Note that the object of the last answer is known: an equal one is not its, but perhaps another model's."""
    if (last := _last_answer.get()) is not None:
        _last_answer.set(last._replace(has_object=True))


def trust_of(answer: Any) -> Trust:
    """How sure an answer is, field by field, and where it stands in the prompt.

    Args:
        answer: The object that a structured call, a Pydantic program or a stream, as its last one, returned; the
            response of a chat model, a query engine or a chat engine; or an event with one of them. A copy of an
            object has none.

    Raises:
        ConfigurationError: Nothing is known of it.
    """
    for found in _holders(answer):
        if isinstance(found, Trust):
            return found
        known = _remembered.get(id(found))
        if known is not None and known[0]() is found:
            return Trust.model_validate_json(known[1])
        if (trust := trust_in_raw(found)) is not None or (trust := _trust_in_last(found)) is not None:
            return trust
    raise ConfigurationError(_unknown(answer))


def _trust_in_last(answer: Any) -> Trust | None:
    """The trust in this context's last answer, if the object is what its class reads from it, or a text is its JSON."""
    if (last := _last_answer.get()) is None:
        return None
    try:
        written = json_span(last.text)
        if isinstance(answer, str):
            is_equal = loads(answer) == loads(written)
        elif isinstance(answer, BaseModel) and not last.has_object:
            read = type(answer).model_validate_json(written)
            has_same_fields = read.model_fields_set == answer.model_fields_set
            # A class that has defaults for all reads an object from any text: one that takes nothing of it is not its.
            reads_it = bool(read.model_fields_set) or loads(written) == {}
            is_equal = has_same_fields and reads_it and read.model_dump_json() == answer.model_dump_json()
        else:
            return None
        return trust_in_raw(last.raw) if is_equal else None
    except ValueError:
        return None


def _holders(answer: Any) -> Iterator[Any]:
    """The answer, and what it holds that may be the answer itself."""
    from llama_index.core.base.llms.types import ChatResponse, CompletionResponse
    from llama_index.core.base.response.schema import PydanticResponse
    from llama_index.core.chat_engine.types import AgentChatResponse
    from llama_index.core.instrumentation.events import BaseEvent

    waiting = [answer]
    for _ in range(_MOST_HOLDERS):
        found, waiting = waiting, []
        for one in found:
            yield one
            if isinstance(one, ChatResponse | CompletionResponse):
                waiting.append(one.raw)
            elif isinstance(one, PydanticResponse):
                waiting.append(one.response)
            elif isinstance(one, AgentChatResponse):
                waiting += [source.raw_output for source in one.sources[:1]] + [one.response]
            elif isinstance(one, BaseEvent):
                waiting += [getattr(one, name, None) for name in ("trust", "response", "output")]


def _unknown(answer: Any) -> str:
    name = type(answer).__name__
    held = getattr(answer, "response", None) if type(answer).__name__ == "PydanticResponse" else answer
    if isinstance(held, BaseModel) and type(held).__weakrefoffset__ == 0:
        return (
            f"how sure this {name} is is not kept: Python can refer to no object of {type(held).__name__} weakly, "
            f"because of its __slots__; add '__weakref__' to them, or ask with llm.chat(..., response_format=...) and "
            "pass the response"
        )
    return (
        f"nothing is known of how sure this {name} is: pass what a LoraLLM with confidence=True returned for a "
        "structured call: the object itself, no copy of it, or the response; of a stream its last object"
    )
