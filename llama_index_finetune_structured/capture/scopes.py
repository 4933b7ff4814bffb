"""Decide which recorder owns a span: the scope of a handler, and the scope of a ``with`` block."""

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

__all__ = ["AttachedScope", "BlockScope", "FineTuningHandlerBase"]


class Attachments:
    """Components passed to ``attach``, compared by identity and referenced weakly."""

    def __init__(self) -> None:
        self._refs: dict[int, weakref.ref[Any]] = {}

    def add(self, component: Any) -> None:
        """Attach an LLM, index, query engine, program or agent."""
        key = id(component)
        self._refs[key] = weakref.ref(component, lambda _: self._refs.pop(key, None))

    def cover(self, instance: Any) -> bool:
        """Whether ``instance``, or the retriever or index that it uses, was attached."""
        if not self._refs:
            return False
        return any(ref() is part for part in _components(instance) if (ref := self._refs.get(id(part))))


class AttachedScope:
    """Spans of the components that have the handler in their callback manager or were passed to ``attach``.

    A handler in ``Settings`` or ``global_handler`` owns the spans of every LLM without another fine-tuning handler of
    its own.
    """

    def __init__(self, handler: BaseCallbackHandler) -> None:
        self._handler = weakref.ref(handler)
        self.attached = Attachments()

    def covers(self, span: Span) -> bool:
        """Whether the span's component belongs to the handler."""
        instance, handler = span.instance, self._handler()
        if instance is None or handler is None:
            return False
        if self.attached.cover(instance):
            return True
        own_handlers = _handlers_of(instance)
        for item in own_handlers:
            if item is handler:
                return True
        if not isinstance(instance, BaseLLM) or not any(item is handler for item in _global_handlers()):
            return False
        return not any(isinstance(item, FineTuningHandlerBase) for item in own_handlers)


class FineTuningHandlerBase(BaseCallbackHandler):
    """Base of this package's handlers, by which a scope recognises the other handlers of the kind."""


def _components(instance: Any) -> list[Any]:
    """The instance itself, and the retriever and the index that it uses."""
    attributes = _attributes(instance)
    if "_retriever" not in attributes and "_index" not in attributes:
        return [instance]
    retriever = attributes.get("_retriever")
    parts = (instance, attributes.get("_index"), retriever, _attributes(retriever).get("_index"))
    return [part for part in parts if part is not None]


def _handlers_of(instance: Any) -> list[BaseCallbackHandler]:
    """The callback handlers of the instance and of the retriever and index that it uses."""
    handlers: list[BaseCallbackHandler] = []
    for part in _components(instance):
        attributes = _attributes(part)
        for manager in (attributes.get("callback_manager"), attributes.get("_callback_manager")):
            # isinstance is slow for an abstract class, and slowest for None: this runs for every span
            if manager is not None and isinstance(manager, CallbackManager):
                handlers += manager.handlers
    return handlers


def _attributes(instance: Any) -> Mapping[str, Any]:
    """The instance's own attributes, read without calling a property of the host, which could have side effects."""
    return getattr(instance, "__dict__", {})


def _global_handlers() -> list[BaseCallbackHandler]:
    """The handlers of ``Settings``, if it has a manager already, and LlamaIndex's global handler."""
    manager = Settings._callback_manager
    handlers = manager.handlers if manager is not None else []
    global_handler = llama_index.core.global_handler
    return [*handlers, global_handler] if global_handler is not None else handlers


# The ``with`` blocks around the running code. A context variable, so that asyncio tasks inherit it; threads do not.
_blocks: ContextVar[tuple[BlockScope, ...]] = ContextVar("finetune_structured_blocks", default=())


class BlockScope:
    """Spans inside a ``with`` block: of its own code, its asyncio tasks and the threads started while it is open.

    Threads that were running before the block, and asyncio tasks that other code created, are outside, except for
    the calls of components passed to ``attach``. ``everywhere``: all spans of the process while the block is open.
    """

    def __init__(self, *, everywhere: bool = False) -> None:
        self.attached = Attachments()
        self._everywhere = everywhere
        self._threads_before: weakref.WeakSet[threading.Thread] = weakref.WeakSet()

    def enter(self) -> None:
        """Start the block in the current context."""
        self._threads_before = weakref.WeakSet(threading.enumerate())
        _blocks.set((*_blocks.get(), self))

    def leave(self) -> None:
        """End the block in the current context."""
        _blocks.set(tuple(scope for scope in _blocks.get() if scope is not self))

    def covers(self, span: Span) -> bool:
        """Whether the running code is inside the block, or the span's component was attached."""
        blocks = _blocks.get()
        if self._everywhere or self in blocks or self.attached.cover(span.instance):
            return True
        # A thread started inside the block has an empty context; one with blocks of its own belongs to those.
        return not blocks and threading.current_thread() not in self._threads_before
