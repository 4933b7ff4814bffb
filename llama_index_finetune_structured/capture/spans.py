"""Open spans and LLM calls: the span tree with its queries, retrieved nodes and owning recorders."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import AsyncGeneratorType, FrameType, GeneratorType
from typing import Any, NamedTuple, Protocol

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.response_synthesizers.refine import DefaultRefineProgram
from llama_index.core.types import BasePydanticProgram
from pydantic import BaseModel

from .labels import Labels, current_labels

__all__ = ["Call", "ComponentKind", "Scope", "Span", "SpanOwner", "SpanTree"]

_MAX_OPEN = 100_000  # chosen: bounds the memory of spans that never end; the oldest are dropped first
_ID_SUFFIX = len("-") + len("00000000-0000-0000-0000-000000000000")  # a span id is "Class.method-<uuid>"


class Scope(Protocol):
    """The rule by which a recorder owns spans, with everything below them."""

    def covers(self, span: Span) -> bool:
        """Whether the recorder owns ``span``; called once for each span whose parent it does not own."""


class SpanOwner(Protocol):
    """A recorder as the span tree and the tracker use it; ``listening`` is False once its scope has ended."""

    scope: Scope
    listening: bool

    def record(self, call: Call, response: Any) -> None:
        """Store a completed call. Never raises."""

    def count_fault(self, error: Exception) -> None:
        """Count an error inside capture."""

    def count_outside(self) -> None:
        """Count an LLM call that no recorder owns."""


@dataclass(slots=True)
class Call:
    """A started LLM call. Everything in it is a copy, so the host may change its own objects.

    ``kind``: "chat" or "complete". ``messages``: in OpenAI's wire format. ``query``: the innermost query around the
    call, ``user_query`` the outermost. ``sources``: the retrieved nodes, as fields of ``example.Source``.
    ``labels``: of the code that made the call. ``finish_reason``: from a stream's chunks, where its last chunk does
    not carry it.
    """

    event_id: str
    kind: str
    owners: frozenset[SpanOwner]
    messages: list[dict[str, Any]]
    kwargs: dict[str, Any]
    model: str | None
    output_cls: type[BaseModel] | None
    query: str | None
    user_query: str | None
    sources: list[dict[str, Any]]
    labels: Labels | None = None
    finish_reason: str | None = None


class ComponentKind(NamedTuple):
    """Which LlamaIndex component a class is. Cached, as each check of an abstract base class takes 1 µs."""

    is_llm: bool
    is_query_engine: bool
    is_chat_engine: bool
    is_program: bool
    is_retriever: bool


@lru_cache(maxsize=1024)
def _component_kind(cls: type[Any]) -> ComponentKind:
    return ComponentKind(
        issubclass(cls, BaseLLM) and not issubclass(cls, StructuredLLM),
        issubclass(cls, BaseQueryEngine),
        issubclass(cls, BaseChatEngine),
        # DefaultRefineProgram has an output_cls for its own bookkeeping but requests plain text from the LLM.
        issubclass(cls, BasePydanticProgram) and not issubclass(cls, DefaultRefineProgram),
        issubclass(cls, BaseRetriever),
    )


@dataclass(eq=False, slots=True)
class Span:
    """One open span.

    ``owners``: the recorders that own it, once ``is_placed``. ``output_cls``: the class that the component parses
    its answer to. ``only_tool``: metadata of the one tool of a ``predict_and_call``. ``nodes``: the retrieved
    nodes. ``bound``: the bound arguments of an LLM method. ``labels``: of the running code or, where it has none,
    of the parent (a generator's body may run later, and a worker thread has an empty context). ``call``: the LLM
    call under way; ``has_call``: there was one here or below; ``is_call``: there was one here.
    """

    id: str
    method: str
    instance: Any
    kind: ComponentKind
    parent: Span | None
    owners: frozenset[SpanOwner] = frozenset()
    is_placed: bool = False
    output_cls: type[BaseModel] | None = None
    only_tool: Any = None
    query: str | None = None
    nodes: Any = None
    bound: Any = None
    labels: Labels | None = None
    call: Call | None = None
    has_call: bool = False
    is_call: bool = False

    @property
    def is_engine(self) -> bool:
        """Whether this is a span of a query engine or chat engine."""
        return self.kind.is_query_engine or self.kind.is_chat_engine

    def call_arguments(self) -> tuple[Any, dict[str, Any]]:
        """The (messages or prompt, keyword arguments) of the LLM method that was called.

        Raises ValueError for a prompt template with function mappings: formatting it again would call the host's
        functions a second time.
        """
        arguments = self.bound.arguments
        prompt = arguments.get("prompt")
        if not isinstance(prompt, BasePromptTemplate):
            return arguments.get("messages", prompt), {**arguments.get("kwargs", {})}
        if prompt.function_mappings:
            raise ValueError("a prompt template with function mappings cannot be formatted after the call")
        values = arguments.get("prompt_args", {})
        return prompt.format_messages(**values), {"response_format": self.output_cls}

    def lineage(self) -> list[Span]:
        """This span, its parent, and so on to the root."""
        spans, parent = [self], self.parent
        while parent is not None:
            spans.append(parent)
            parent = parent.parent
        return spans


class SpanTree:
    """Open spans by id, and spans of live generators by the id of their frame.

    A generator's body runs after its span has ended, inside whatever span its consumer has open. Its frame is
    then on the stack, by which the calls it makes find their true parent (see ``_running_generator``). Every
    operation is one atomic step of a dict, since the garbage collector may call ``forget`` at any point.
    """

    def __init__(self) -> None:
        self._open: dict[str, Span] = {}  # by span id
        self._generator_spans: dict[int, Span] = {}  # by the id of the generator's frame
        self._generators: dict[str, weakref.ref[Any]] = {}  # by span id
        self._calls: dict[str, Span] = {}  # spans with a call under way, by span id

    def __len__(self) -> int:
        """The number of records held, for tests of leaks."""
        return len(self._open) + len(self._generator_spans) + len(self._generators) + len(self._calls)

    @property
    def has_calls(self) -> bool:
        """Whether any LLM call is under way."""
        return bool(self._calls)

    def get(self, span_id: str | None) -> Span | None:
        """The open span with this id, or None."""
        return None if span_id is None else self._open.get(span_id)

    def enter(self, span_id: str, instance: Any, parent_id: str | None, bound: Any) -> Span:
        """Open a span below its parent and read the output class and the query from its arguments."""
        kind = _component_kind(type(instance))  # type: ignore[arg-type]  # mypy takes type[Any] for unhashable
        span = Span(span_id, _method_name(span_id), instance, kind, self._parent(parent_id))
        span.labels = current_labels() or (span.parent.labels if span.parent is not None else None)
        span.bound = bound if span.kind.is_llm else None
        arguments = bound.arguments
        span.output_cls = _output_cls(span, arguments)
        span.only_tool = _only_tool(span, arguments)
        _read_query(span, arguments)
        self._open[span_id] = span
        _drop_oldest(self._open)
        return span

    def leave(self, span_id: str, result: Any) -> Span | None:
        """Close a span and return it; its record is kept while a generator that it returned is alive."""
        span = self._open.pop(span_id, None)
        frame = _generator_frame(result)
        if frame is None:
            self.end_call(span_id)
        elif span is not None:
            self._keep_for_generator(span, result, id(frame))
        return span

    def forget_open(self) -> None:
        """Drop all open spans; called when the handlers are removed, after which no span end arrives."""
        self._open.clear()

    def start_call(self, span: Span, call: Call) -> None:
        """Register an LLM call that started in ``span``."""
        span.call = call
        self._calls[span.id] = span
        _drop_oldest(self._calls)

    def running_call(self, span_id: str | None) -> Call | None:
        """The call under way in this span, or None."""
        span = self._calls.get(span_id) if span_id is not None else None
        return None if span is None else span.call

    def end_call(self, span_id: str | None) -> Call | None:
        """Remove and return the call under way in this span, whether it succeeded or failed."""
        span = self._calls.pop(span_id, None) if span_id is not None else None
        if span is None:
            return None
        call, span.call = span.call, None
        return call

    def _keep_for_generator(self, span: Span, generator: Any, frame_id: int) -> None:
        """Keep the span until the garbage collector frees the generator, read to its end or abandoned."""

        def forget(_: Any) -> None:
            self._generators.pop(span.id, None)
            if self._generator_spans.get(frame_id) is span:
                self._generator_spans.pop(frame_id, None)
            self.end_call(span.id)

        self._generator_spans[frame_id] = span
        self._generators[span.id] = weakref.ref(generator, forget)

    def _parent(self, parent_id: str | None) -> Span | None:
        """The parent of a new span: the generator that is running, unless LlamaIndex's parent is inside it."""
        reported = self.get(parent_id)
        running = self._running_generator() if self._generator_spans else None
        if running is None or (reported is not None and running in reported.lineage()):
            return reported
        return running

    def _running_generator(self) -> Span | None:
        """The span of the innermost generator on the stack whose span has already ended.

        LlamaIndex closes a span when its method returns, so a method that returns a generator has no open span
        while the generator's body runs. A call made by the body is reported with the consumer's span as parent,
        or none, though it belongs to the method (an LLM that streams from another LLM makes one call, not two).
        Context variables do not help, since the body runs in the consumer's context. The frame does: while the
        body runs, it is on the stack of the thread that consumes it, sync or async.
        """
        frame: FrameType | None = sys._getframe(2)  # skip this method and _parent
        while frame is not None:
            span = self._generator_spans.get(id(frame))
            if span is not None and self._is_frame_of(span, frame):
                return span
            frame = frame.f_back
        return None

    def _is_frame_of(self, span: Span, frame: FrameType) -> bool:
        """Whether the frame is the generator's own; after it has ended, its id may be that of another frame."""
        generator = self._generators.get(span.id)
        return generator is not None and _generator_frame(generator()) is frame


def _drop_oldest(records: dict[str, Span]) -> None:
    if len(records) > _MAX_OPEN:
        records.pop(next(iter(records)), None)


def _generator_frame(result: Any) -> Any:
    """The frame of a generator or async generator; None once it has ended, and for anything else."""
    if isinstance(result, GeneratorType):
        return result.gi_frame
    return result.ag_frame if isinstance(result, AsyncGeneratorType) else None


def _method_name(span_id: str) -> str:
    """``Class.method-<uuid>`` -> ``method``."""
    return span_id[:-_ID_SUFFIX].rpartition(".")[2]


def _output_cls(span: Span, arguments: Mapping[str, Any]) -> type[BaseModel] | None:
    """The class named by the method's arguments or by the program itself."""
    cls = arguments.get("output_cls")
    if cls is None and span.kind.is_program:
        cls = span.instance.output_cls
    return cls if isinstance(cls, type) and issubclass(cls, BaseModel) else None


def _only_tool(span: Span, arguments: Mapping[str, Any]) -> Any:
    """The metadata of a single tool: an awaited FunctionCallingProgram has no span, its tool names the class."""
    if span.method not in ("predict_and_call", "apredict_and_call"):
        return None
    tools = arguments.get("tools") or ()
    return next(iter(tools)).metadata if len(tools) == 1 else None


def _read_query(span: Span, arguments: Mapping[str, Any]) -> None:
    """Set ``span.query``, and ``span.nodes`` of a synthesizer, from the arguments of its method."""
    if span.method in ("synthesize", "asynthesize"):
        span.nodes = arguments.get("nodes")
        query = arguments.get("query")
    elif span.kind.is_chat_engine:
        query = arguments.get("message")
    elif span.kind.is_query_engine and span.method in ("query", "aquery"):
        query = arguments.get("str_or_query_bundle")
    else:
        return
    query = getattr(query, "query_str", query)
    span.query = query if isinstance(query, str) else None
