"""The process-wide listener: follow LlamaIndex's spans and events and pass completed calls to recorders.

One event handler and one span handler are on the root dispatcher while any recorder is registered. Spans give the
nesting, events give messages and answers. No error in here reaches the host: errors are counted.
"""

from __future__ import annotations

import _thread
import json
import threading
import weakref
from collections.abc import Callable
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span import BaseSpan
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index_instrumentation import get_dispatcher
from pydantic import BaseModel

from ..answer_values import trained_value
from ..forks import reset_after_fork
from .calls import finish_reason, start_call
from .spans import Span, SpanOwner, SpanTree

__all__ = ["Tracker", "tracker"]

_INTERRUPT_AGAIN_S = (
    0.05  # chosen: the dispatcher has returned, also on a busy machine, before a user notices
)
_CALLS = frozenset({"chat", "achat", "complete", "acomplete"})
_NO_OWNERS: frozenset[SpanOwner] = frozenset()
_STRUCTURED = frozenset({"structured_predict", "astructured_predict"})


class Tracker:
    """Turn spans and events into completed calls and pass each once to every recorder that owns it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._recorders: tuple[weakref.ref[SpanOwner], ...] = ()
        self.tree = SpanTree()
        self._on_event: dict[str, Callable[[Any], None]] = {
            "LLMChatStartEvent": lambda event: self._call_started(event, "chat", event.messages),
            "LLMCompletionStartEvent": lambda event: self._call_started(event, "complete", event.prompt),
            "LLMChatInProgressEvent": self._call_in_progress,
            "LLMCompletionInProgressEvent": self._call_in_progress,
            "LLMChatEndEvent": self._call_ended,
            "LLMCompletionEndEvent": self._call_ended,
            "ExceptionEvent": self._call_failed,
            "RetrievalEndEvent": self._retrieved,
        }
        self._handlers = (_Events(), _Spans())
        reset_after_fork(self)

    def after_fork(self) -> None:
        """Recreate the lock; the recorders stay registered."""
        self._lock = threading.RLock()

    def add(self, recorder: SpanOwner) -> None:
        """Register a recorder until it is removed or garbage-collected; installs the handlers if needed."""
        with self._lock:
            self._recorders = (*self._alive(), weakref.ref(recorder, lambda _: self.remove(None)))
            root, (events, spans) = get_dispatcher(), self._handlers
            if not any(handler is events for handler in root.event_handlers):
                root.event_handlers = [*root.event_handlers, events]
            if not any(handler is spans for handler in root.span_handlers):
                root.span_handlers = [*root.span_handlers, spans]

    def remove(self, recorder: SpanOwner | None) -> None:
        """Unregister a recorder (None: only those collected); without any left, remove the handlers."""
        with self._lock:
            if recorder is not None:
                recorder.listening = False
            self._recorders = tuple(ref for ref in self._alive() if ref() is not recorder)
            if not self._recorders and not self.tree.has_calls:  # open streams are followed to their end
                root, (events, spans) = get_dispatcher(), self._handlers
                root.event_handlers = [item for item in root.event_handlers if item is not events]
                root.span_handlers = [item for item in root.span_handlers if item is not spans]
                self.tree.forget_open()

    def _alive(self) -> tuple[weakref.ref[SpanOwner], ...]:
        return tuple(ref for ref in self._recorders if ref() is not None)

    def guarded(self, step: Callable[..., None], *args: Any) -> None:
        """Run one step; an exception in it is counted by every recorder and not raised."""
        try:
            step(*args)
        except Exception as error:
            for ref in self._recorders:
                if (recorder := ref()) is not None:
                    recorder.count_fault(error)
        except KeyboardInterrupt:
            # LlamaIndex's dispatcher swallows it, so the main thread is interrupted again a moment later.
            threading.Timer(_INTERRUPT_AGAIN_S, _thread.interrupt_main).start()

    def event(self, event: Any) -> None:
        """Handle an event of LlamaIndex."""
        step = self._on_event.get(type(event).__name__)
        if step is not None:
            self.guarded(step, event)

    def entered(self, span_id: str, instance: Any, parent_id: str | None, bound: Any) -> None:
        """Register a new span and the recorders that own it: its parent's, and those whose scope covers it."""
        span = self.tree.enter(span_id, instance, parent_id, bound)
        inherited = span.owners = span.parent.owners if span.parent is not None else _NO_OWNERS
        for ref in self._recorders:
            recorder = ref()
            if recorder is not None and recorder not in inherited and recorder.scope.covers(span):
                span.owners |= {recorder}
        if span.owners is not inherited and span.kind.is_retriever:
            _add_owners_to_engine(span)
        span.is_placed = True

    def left(self, span_id: str, result: Any) -> None:
        """Close a span that returned ``result``; an LLM that fires no events is recorded from its span alone."""
        span = self.tree.leave(span_id, result)
        if span is None or span.has_call or not span.kind.is_llm:
            return
        if span.method in _CALLS and isinstance(result, (ChatResponse, CompletionResponse)):
            self._record_without_events(span, result)
        elif span.method in _STRUCTURED and isinstance(result, BaseModel):
            text = json.dumps(trained_value(result), ensure_ascii=False)
            message = ChatMessage(role="assistant", content=text)
            self._record_without_events(span, ChatResponse(message=message))

    def dropped(self, span_id: str) -> None:
        """Close a span that failed."""
        self.tree.leave(span_id, None)

    def _call_started(self, event: Any, kind: str, messages: Any) -> None:
        span = self.tree.get(event.span_id)
        if span is None or isinstance(span.instance, StructuredLLM):
            return  # its inner call is recorded instead, which has the messages that were sent
        owners = self._claim_call(span)
        if owners:
            call = start_call(
                span,
                owners,
                event_id=event.id_,
                kind=kind,
                messages=messages,
                kwargs=event.additional_kwargs,
                model=event.model_dict.get("model_name"),
            )
            self.tree.start_call(span, call)

    def _call_in_progress(self, event: Any) -> None:
        call = self.tree.running_call(event.span_id)
        if call is not None:
            call.finish_reason = finish_reason(event.response) or call.finish_reason

    def _call_ended(self, event: Any) -> None:
        call = self.tree.end_call(event.span_id)
        if call is not None and event.response is not None:
            for recorder in call.owners:
                recorder.record(call, event.response)
        self._remove_if_idle()

    def _call_failed(self, event: Any) -> None:
        self.tree.end_call(event.span_id)
        self._remove_if_idle()

    def _remove_if_idle(self) -> None:
        """Remove the handlers after the last stream that outlived its recorder."""
        if not self._recorders:
            self.remove(None)

    def _retrieved(self, event: Any) -> None:
        """Attach the retrieved nodes to the nearest span that has a query."""
        span = self.tree.get(event.span_id)
        for item in span.lineage() if span is not None else ():
            if item.query is not None:
                item.nodes = event.nodes
                return

    def _record_without_events(self, span: Span, response: Any) -> None:
        """Record a ``complete`` without LlamaIndex's decorator, or an LLM's own ``structured_predict``."""
        owners = self._claim_call(span)
        if owners:
            kind = "complete" if "complete" in span.method else "chat"
            messages, kwargs = span.call_arguments()
            model = span.instance.metadata.model_name
            call = start_call(
                span, owners, event_id=span.id, kind=kind, messages=messages, kwargs=kwargs, model=model
            )
            for recorder in owners:
                recorder.record(call, response)

    def _claim_call(self, span: Span) -> frozenset[SpanOwner]:
        """Mark the span and its ancestors as having a call, and return the recorders that have to record it.

        An LLM may call itself or another LLM (``chat`` by ``complete``). A recorder takes the outermost call only, so
        those that record a call around this one are left out. A call that nobody owns is counted, once as well.
        """
        owners = span.owners
        for owner in owners:
            if not owner.listening:
                owners = owners - {owner}
        span.is_call, inner_call = True, False
        for item in span.lineage():
            item.has_call = True
            inner_call = inner_call or (item is not span and item.is_call)
            if item.call is not None and owners:
                owners = owners - item.call.owners
        if span.is_placed and not span.owners and not inner_call:
            for ref in self._recorders:
                if (recorder := ref()) is not None:
                    recorder.count_outside()
        return owners


def _add_owners_to_engine(span: Span) -> None:
    """Make the owners of a retriever's span own the query engine around it too.

    LlamaIndex passes the handler of an index to its retriever only; the answer is made in the query engine.
    """
    path = []
    for item in span.lineage():
        path.append(item)
        if item.is_engine and (item.parent is None or item.parent.instance is not item.instance):
            for inner in path:
                inner.owners = inner.owners | span.owners
            return


class _Events(BaseEventHandler):
    @classmethod
    def class_name(cls) -> str:
        return "FinetuneStructuredEvents"

    def handle(self, event: Any, **_: Any) -> None:
        tracker.event(event)


class _Spans(BaseSpanHandler[BaseSpan]):
    @classmethod
    def class_name(cls) -> str:
        return "FinetuneStructuredSpans"

    def span_enter(
        self,
        id_: str,
        bound_args: Any,
        instance: Any = None,
        parent_id: str | None = None,
        *_: Any,
        **__: Any,
    ) -> None:
        tracker.guarded(tracker.entered, id_, instance, parent_id, bound_args)

    def span_exit(self, id_: str, *_: Any, result: Any = None, **__: Any) -> None:
        tracker.guarded(tracker.left, id_, result)

    def span_drop(self, id_: str, *_: Any, **__: Any) -> None:
        tracker.guarded(tracker.dropped, id_)

    def new_span(self, *_: Any, **__: Any) -> None:
        return None

    def prepare_to_exit_span(self, *_: Any, **__: Any) -> None:
        return None

    def prepare_to_drop_span(self, *_: Any, **__: Any) -> None:
        return None


tracker = Tracker()
