"""Whose call is it? Two kinds of scope: what a handler is attached to, and the inside of a ``with`` block."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import llama_index.core
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.callbacks import CallbackManager
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.settings import Settings

from llama_index_finetune_structured.capture.spans import Span

__all__ = ["AttachedScope", "BlockScope"]


class Attachments:
    """Objects that were attached by hand, by identity and without keeping them alive."""

    def __init__(self) -> None:
        self._refs: dict[int, weakref.ref[Any]] = {}

    def add(self, component: Any) -> None:
        key = id(component)
        self._refs[key] = weakref.ref(component, lambda _: self._refs.pop(key, None) and None)

    def reach(self, instance: Any) -> bool:
        """Was this, or the retriever or index that it stands on, attached?"""
        if not self._refs:
            return False
        return any(ref() is holder for holder in _holders(instance) if (ref := self._refs.get(id(holder))))


class AttachedScope:
    """Spans of whatever carries the handler: an LLM, an index, an engine, Settings, or was attached by hand.

    Settings and ``global_handler`` reach every LLM but those that carry another handler of this kind.
    """

    def __init__(self, handler: BaseCallbackHandler) -> None:
        self._handler = weakref.ref(handler)
        self.attached = Attachments()

    def covers(self, span: Span) -> bool:
        instance, handler = span.instance, self._handler()
        if instance is None or handler is None:
            return False
        if self.attached.reach(instance):
            return True
        carried = list(_handlers_of(instance))
        if any(item is handler for item in carried):
            return True
        if not isinstance(instance, BaseLLM) or not any(item is handler for item in _global_handlers()):
            return False
        return not any(isinstance(item, FineTuningHandlerBase) for item in carried)


class FineTuningHandlerBase(BaseCallbackHandler):
    """The common type of this package's handlers, by which their scopes know each other."""


def _holders(instance: Any) -> Iterator[Any]:
    """The object itself, and the index and the retriever that it stands on."""
    retriever = _own(instance, "_retriever")
    for holder in (instance, _own(instance, "_index"), retriever, _own(retriever, "_index")):
        if holder is not None:
            yield holder


def _handlers_of(instance: Any) -> Iterator[BaseCallbackHandler]:
    for holder in _holders(instance):
        for name in ("callback_manager", "_callback_manager"):
            manager = _own(holder, name)
            if isinstance(manager, CallbackManager):
                yield from manager.handlers


def _own(instance: Any, name: str) -> Any:
    """An attribute from the instance itself: a property of the host's could have effects."""
    return getattr(instance, "__dict__", {}).get(name)


def _global_handlers() -> list[BaseCallbackHandler]:
    manager = Settings._callback_manager
    handlers = manager.handlers if manager is not None else []
    everywhere = llama_index.core.global_handler
    return [*handlers, everywhere] if everywhere is not None else handlers


_blocks: ContextVar[tuple[BlockScope, ...]] = ContextVar("finetune_structured_blocks", default=())


class BlockScope:
    """Calls made inside a ``with`` block: by its own code, its tasks, and threads started while it is open.

    A thread that ran before is another's; ``attach`` brings its LLM in.
    """

    def __init__(self) -> None:
        self.attached = Attachments()
        self._older_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()

    def enter(self) -> None:
        self._older_threads = weakref.WeakSet(threading.enumerate())
        _blocks.set((*_blocks.get(), self))

    def leave(self) -> None:
        _blocks.set(tuple(scope for scope in _blocks.get() if scope is not self))

    def covers(self, span: Span) -> bool:
        blocks = _blocks.get()
        if self in blocks or self.attached.reach(span.instance):
            return True
        return not blocks and threading.current_thread() not in self._older_threads
