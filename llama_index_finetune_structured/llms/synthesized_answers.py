"""The trust in structured answers, kept on their way through LlamaIndex's response synthesizers."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.base.response.schema import PydanticResponse, Response
from llama_index.core.instrumentation.events.synthesis import SynthesizeEndEvent, SynthesizeStartEvent
from llama_index.core.schema import MetadataMode
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.event_handlers import BaseEventHandler
from pydantic import BaseModel

from ..trust.answer_trust import Trust
from ..trust.lookup import claim_last_answer, remember_trust
from ..trust.source_nodes import with_nodes

__all__ = ["change_trust", "keep_trust"]


@dataclass(frozen=True)
class _Answer:
    """An answer that was given during a synthesis. ``contents``: of the messages of its call."""

    value: BaseModel
    trust: Trust
    contents: tuple[str | None, ...]

    def is_in(self, response: Any) -> bool:
        """Whether a response has this answer: the object, a copy by way of its JSON, or its JSON."""
        if response is self.value:
            return True
        if isinstance(response, BaseModel):
            return type(response) is type(self.value) and response.model_dump_json() == self._json()
        return isinstance(response, str) and response == self._json()

    def _json(self) -> str:
        return self.value.model_dump_json()


@dataclass
class _Synthesis:
    """A synthesis that has begun, with its span. ``outer``: the one that it is a part of."""

    span_id: str | None
    outer: _Synthesis | None
    answers: list[_Answer] = field(default_factory=list)


# Tasks and threads of a synthesis start with a copy of its context, so they add to the same list.
_current: ContextVar[_Synthesis | None] = ContextVar("synthesis", default=None)


def keep_trust(answer: BaseModel, trust: Trust, messages: Sequence[ChatMessage]) -> None:
    """Keep the trust in an answer for ``trust_of``. ``messages``: of its call."""
    remember_trust(answer, trust)
    claim_last_answer()
    if (synthesis := _current.get()) is not None:
        contents = tuple(message.content for message in messages)
        synthesis.answers.append(_Answer(answer, trust, contents))


def change_trust(answer: BaseModel, trust: Trust) -> None:
    """Keep another trust in an answer, which may be known already."""
    remember_trust(answer, trust)
    if (synthesis := _current.get()) is not None:
        known = (each.contents for each in reversed(synthesis.answers) if each.value is answer)
        synthesis.answers.append(_Answer(answer, trust, next(known, ())))


class _Syntheses(BaseEventHandler):
    """Gives a response the trust in its answer: synthesizers write objects as JSON and read them back as others."""

    @classmethod
    def class_name(cls) -> str:
        return "StructuredAnswerSyntheses"

    def handle(self, event: Any, **_: Any) -> None:
        if isinstance(event, SynthesizeStartEvent):
            _current.set(_Synthesis(event.span_id, _current.get()))
        elif isinstance(event, SynthesizeEndEvent):
            synthesis = _current.get()
            while synthesis is not None and synthesis.span_id != event.span_id:  # one that failed has no end
                synthesis = synthesis.outer
            _current.set(None if synthesis is None else synthesis.outer)
            if synthesis is not None and isinstance(event.response, PydanticResponse | Response):
                _remember(event.response, synthesis.answers)


def _remember(response: PydanticResponse | Response, answers: Sequence[_Answer]) -> None:
    given = next((answer for answer in reversed(answers) if answer.is_in(response.response)), None)
    if given is None:
        return
    nodes = {
        each.node.node_id: each.node.get_content(metadata_mode=MetadataMode.LLM)
        for each in response.source_nodes
    }
    trust = with_nodes(given.trust, given.contents, nodes)
    remember_trust(response.response if isinstance(response, PydanticResponse) else response, trust)


get_dispatcher().add_event_handler(_Syntheses())
