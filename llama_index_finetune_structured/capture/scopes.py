"""Whose call is it? Two kinds of scope: what a handler is attached to, and the inside of a ``with`` block."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import llama_index.core
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.callbacks import CallbackManager
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.settings import Settings

from .spans import Span

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
        carried = _handlers_of(instance)
        for item in carried:
            if item is handler:
                return True
        if not isinstance(instance, BaseLLM) or not any(item is handler for item in _global_handlers()):
            return False
        return not any(isinstance(item, FineTuningHandlerBase) for item in carried)


class FineTuningHandlerBase(BaseCallbackHandler):
    """The common type of this package's handlers, by which their scopes know each other."""


def _holders(instance: Any) -> list[Any]:
    """The object itself, and the index and the retriever that it stands on."""
    own = _own(instance)
    if "_retriever" not in own and "_index" not in own:
        return [instance]
    retriever = own.get("_retriever")
    found = (instance, own.get("_index"), retriever, _own(retriever).get("_index"))
    return [holder for holder in found if holder is not None]


def _handlers_of(instance: Any) -> list[BaseCallbackHandler]:
    handlers: list[BaseCallbackHandler] = []
    for holder in _holders(instance):
        own = _own(holder)
        for manager in (own.get("callback_manager"), own.get("_callback_manager")):
            if manager is not None and isinstance(manager, CallbackManager):  # asking of None takes longest
                handlers += manager.handlers
    return handlers


def _own(instance: Any) -> Mapping[str, Any]:
    """The instance's own attributes: a property of the host's could have effects."""
    return getattr(instance, "__dict__", {})


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
