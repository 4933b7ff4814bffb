"""The records of open spans: who runs inside whom, for which query, over which nodes."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import AsyncGeneratorType, FrameType, GeneratorType
from typing import TYPE_CHECKING, Any, NamedTuple

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.response_synthesizers.refine import DefaultRefineProgram
from llama_index.core.types import BasePydanticProgram
from pydantic import BaseModel

if TYPE_CHECKING:
    from .calls import Call
    from .recorder import Recorder

__all__ = ["Span", "SpanTree"]

_MAX_OPEN = 100_000  # records of spans that never end; the oldest go first


class Kind(NamedTuple):
    """What a class is to LlamaIndex; asking abstract base classes costs a microsecond each."""

    is_llm: bool
    is_query_engine: bool
    is_chat_engine: bool
    is_program: bool
    is_retriever: bool


@lru_cache(maxsize=1024)
def kind_of(cls: type[Any]) -> Kind:
    """The kind of the objects of a class."""
    return Kind(
        issubclass(cls, BaseLLM) and not issubclass(cls, StructuredLLM),
        issubclass(cls, BaseQueryEngine),
        issubclass(cls, BaseChatEngine),
        # DefaultRefineProgram names a class for its own bookkeeping and asks the LLM for plain text
        issubclass(cls, BasePydanticProgram) and not issubclass(cls, DefaultRefineProgram),
        issubclass(cls, BaseRetriever),
    )


@dataclass(eq=False, slots=True)
class Span:
    """One open span. ``owners`` are the recorders in whose scope it lies."""

    id: str
    method: str
    instance: Any
    kind: Kind
    parent: Span | None
    owners: frozenset[Recorder] = frozenset()
    output_cls: type[BaseModel] | None = None
    only_tool: Any = None
    query: str | None = None
    nodes: Any = None
    bound: Any = None
    call: Call | None = None
    has_call: bool = False

    @property
    def is_engine(self) -> bool:
        return self.kind.is_query_engine or self.kind.is_chat_engine

    def request(self) -> tuple[Any, dict[str, Any]]:
        """(messages or prompt, keyword arguments) of the LLM method that was called.

        Raises ValueError for a prompt with functions in it: they are the host's and run once only.
        """
        arguments = self.bound.arguments
        prompt = arguments.get("prompt")
        if not isinstance(prompt, BasePromptTemplate):
            return arguments.get("messages", prompt), {**arguments.get("kwargs", {})}
        if prompt.function_mappings:
            raise ValueError("a prompt with function mappings cannot be written down after the call")
        values = arguments.get("prompt_args", {})
        return prompt.format_messages(**values), {"response_format": self.output_cls}

    def lineage(self) -> list[Span]:
        """This span, its parent, and so on to the root."""
        line, above = [self], self.parent
        while above is not None:
            line.append(above)
            above = above.parent
        return line


class SpanTree:
    """Open spans by id, and spans whose generator is still alive by the id of its frame.

    A generator's body runs after its span has ended, under whatever span its consumer is in. Its frame is
    then on the stack: that is how the calls it makes find their true parent. Every operation is one atomic
    step of a dict, since the garbage collector may call back in at any point.
    """

    def __init__(self) -> None:
        self._open: dict[str, Span] = {}
        self._lingering: dict[int, Span] = {}
        self._watched: dict[str, weakref.ref[Any]] = {}
        self._calls: dict[str, Span] = {}

    def __len__(self) -> int:
        return len(self._open) + len(self._lingering) + len(self._watched) + len(self._calls)

    @property
    def has_calls(self) -> bool:
        """Is any LLM call under way?"""
        return bool(self._calls)

    def get(self, span_id: str | None) -> Span | None:
        return None if span_id is None else self._open.get(span_id)

    def enter(self, span_id: str, instance: Any, parent_id: str | None, bound: Any) -> Span:
        """A new span below its parent, with what its arguments tell."""
        kind = kind_of(type(instance))  # type: ignore[arg-type]  # mypy takes type[Any] for unhashable
        span = Span(span_id, _method_of(span_id), instance, kind, self._parent(parent_id))
        span.bound = bound if span.kind.is_llm else None
        arguments = bound.arguments
        span.output_cls = _output_cls_of(span, arguments)
        span.only_tool = _only_tool(span, arguments)
        _read_query(span, arguments)
        self._open[span_id] = span
        _bound(self._open)
        return span

    def leave(self, span_id: str, result: Any) -> Span | None:
        """The span has ended; it stays known while the generator it returned is alive."""
        span = self._open.pop(span_id, None)
        frame = _frame_of(result)
        if frame is None:
            self.end_call(span_id)
        elif span is not None:
            self._linger(span, result, id(frame))
        return span

    def forget_open(self) -> None:
        """Nobody listens any more: how the open spans end will not be heard."""
        self._open.clear()

    def start_call(self, span: Span, call: Call) -> None:
        """An LLM call has begun in this span."""
        span.call = call
        self._calls[span.id] = span
        _bound(self._calls)

    def running_call(self, span_id: str | None) -> Call | None:
        """The span's call, if it is under way."""
        span = self._calls.get(span_id) if span_id is not None else None
        return None if span is None else span.call

    def end_call(self, span_id: str | None) -> Call | None:
        """The span's call, which is over now, whether it succeeded or not."""
        span = self._calls.pop(span_id, None) if span_id is not None else None
        if span is None:
            return None
        call, span.call = span.call, None
        return call

    def _linger(self, span: Span, generator: Any, key: int) -> None:
        def forget(_: Any) -> None:
            self._watched.pop(span.id, None)
            if self._lingering.get(key) is span:
                self._lingering.pop(key, None)
            self.end_call(span.id)

        self._lingering[key] = span
        self._watched[span.id] = weakref.ref(generator, forget)

    def _parent(self, parent_id: str | None) -> Span | None:
        given = self.get(parent_id)
        running = self._running_generator() if self._lingering else None
        if running is None or (given is not None and running in given.lineage()):
            return given
        return running

    def _running_generator(self) -> Span | None:
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            span = self._lingering.get(id(frame))
            if span is not None and self._runs_in(frame, span):
                return span
            frame = frame.f_back
        return None

    def _runs_in(self, frame: FrameType, span: Span) -> bool:
        """A generator that has ended gives its frame's id back for others to have."""
        watched = self._watched.get(span.id)
        return watched is not None and _frame_of(watched()) is frame


def _bound(records: dict[str, Span]) -> None:
    if len(records) > _MAX_OPEN:
        records.pop(next(iter(records)), None)


def _frame_of(result: Any) -> Any:
    if isinstance(result, GeneratorType):
        return result.gi_frame
    return result.ag_frame if isinstance(result, AsyncGeneratorType) else None


def _method_of(span_id: str) -> str:
    """``Class.method-<uuid>`` -> ``method``."""
    return span_id[:-37].rpartition(".")[2]


def _output_cls_of(span: Span, arguments: Mapping[str, Any]) -> type[BaseModel] | None:
    found = arguments.get("output_cls")
    if found is None and span.kind.is_program:
        found = span.instance.output_cls
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None


def _only_tool(span: Span, arguments: Mapping[str, Any]) -> Any:
    """A FunctionCallingProgram that is awaited has no span: its one tool names the class."""
    if span.method not in ("predict_and_call", "apredict_and_call"):
        return None
    tools = arguments.get("tools") or ()
    return next(iter(tools)).metadata if len(tools) == 1 else None


def _read_query(span: Span, arguments: Mapping[str, Any]) -> None:
    if span.method in ("synthesize", "asynthesize"):
        span.nodes = arguments.get("nodes")
        asked = arguments.get("query")
    elif span.kind.is_chat_engine:
        asked = arguments.get("message")
    elif span.kind.is_query_engine and span.method in ("query", "aquery"):
        asked = arguments.get("str_or_query_bundle")
    else:
        return
    asked = getattr(asked, "query_str", asked)
    span.query = asked if isinstance(asked, str) else None
