"""Collects of each call the LLM's raw text, bound hits, retries and reasoning from LlamaIndex's events."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index_instrumentation import root_dispatcher
from llama_index_instrumentation.dispatcher import active_instrument_tags, instrument_tags
from pydantic import PrivateAttr

from ...capture.calls import reasoning_tokens

__all__ = ["Trace", "Tracer", "tracing"]

_TAG = "finetune_structured_call"


@dataclass
class Trace:
    """Events of one call: whether an LLM answered, its last text, the JSON paths where a bound was reached, retries.

    ``reasoning_tokens``: of all answers of LLMs in the call; None where none counts tokens.
    """

    answered: bool = False
    raw_text: str | None = None
    bound_hits: list[str] = field(default_factory=list)
    retries: int = 0
    reasoning_tokens: int | None = None


class Tracer(BaseEventHandler):
    """Assigns every event to the call whose tag it carries.

    Events are recognised by class name, so that the local LLM's module (and torch) need not be imported.
    """

    _traces: dict[str, Trace] = PrivateAttr(default_factory=dict)

    @classmethod
    def class_name(cls) -> str:
        return "FinetuneStructuredTracer"

    @contextmanager
    def call(self, key: str) -> Iterator[Trace]:
        """Attribute the events of this block (its tasks and threads included) to ``key``."""
        trace = self._traces[key] = Trace()
        try:
            with instrument_tags({**active_instrument_tags.get(), _TAG: key}):
                yield trace
        finally:
            del self._traces[key]

    def handle(self, event: Any, **kwargs: Any) -> None:
        """Add the event to its call's trace; events of other calls are ignored."""
        trace = self._traces.get(event.tags.get(_TAG, ""))
        if trace is None:
            return
        kind = event.class_name()
        if kind == "StructuredAnswerEvent":
            trace.bound_hits += [str(hit) for hit in event.bound_hits]
            trace.retries += int(getattr(event, "retries", 0))
        elif kind in ("LLMChatEndEvent", "LLMCompletionEndEvent") and event.response is not None:
            trace.answered = True
            trace.raw_text = _text_of(event.response) or trace.raw_text
            if (tokens := reasoning_tokens(event.response)) is not None:
                trace.reasoning_tokens = tokens + (trace.reasoning_tokens or 0)


def _text_of(response: Any) -> str:
    """The text of a chat or completion response; without text, its tool calls' arguments."""
    message = getattr(response, "message", None)
    if message is None:
        return str(response.text)
    tool_calls = [block for block in message.blocks if getattr(block, "tool_kwargs", None) is not None]
    return message.content or "".join(str(block.tool_kwargs) for block in tool_calls)


@contextmanager
def tracing() -> Iterator[Tracer]:
    """A tracer that is registered on the root dispatcher within the block."""
    tracer = Tracer()
    root_dispatcher.add_event_handler(tracer)
    try:
        yield tracer
    finally:
        kept = [handler for handler in root_dispatcher.event_handlers if handler is not tracer]
        root_dispatcher.event_handlers = kept
