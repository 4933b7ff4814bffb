"""One LLM call: what is copied when it starts, and the Example that it becomes when it has ended."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from llama_index_finetune_structured.capture.asked import Asked, read_asked
from llama_index_finetune_structured.capture.spans import Span
from llama_index_finetune_structured.capture.wire import json_safe, message_to_wire, tools_to_wire
from llama_index_finetune_structured.example import Example, Message, Source, Usage

__all__ = ["Call", "finish_reason", "prompt_messages", "start_call", "to_example"]

_KEPT = (
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "json_schema",
    "guided_json",
    "format",
)
_EDGE = 64  # characters by which a node is recognised in a prompt


@dataclass(frozen=True)
class Call:
    """A started call; everything in it is a copy, so that the host may change its own objects."""

    event_id: str
    kind: str
    owners: frozenset[Any]
    messages: list[dict[str, Any]]
    kwargs: dict[str, Any]
    model: str | None
    output_cls: type[BaseModel] | None
    query: str | None
    user_query: str | None
    sources: tuple[Source, ...]


def prompt_messages(prompt: str) -> list[dict[str, Any]]:
    """A completion's prompt as the one user message that it is."""
    return [{"role": "user", "content": prompt}]


def start_call(
    span: Span,
    owners: frozenset[Any],
    *,
    event_id: str,
    kind: str,
    messages: Any,
    kwargs: Mapping[str, Any],
    model: str | None,
) -> Call:
    """Copy a call that begins in ``span``, with the query and the nodes it is made for."""
    if isinstance(messages, str):
        wire = prompt_messages(messages)
    else:
        wire = [message_to_wire(message) for message in messages]
    queries = [item.query for item in span.lineage() if item.query is not None]
    return Call(
        event_id=event_id,
        kind=kind,
        owners=owners,
        messages=wire,
        kwargs={key: _copied(kwargs[key]) for key in _KEPT if kwargs.get(key) is not None},
        model=model,
        output_cls=_output_cls(span, kwargs),
        query=queries[0] if queries else None,
        user_query=queries[-1] if queries else None,
        sources=_sources(span, wire),
    )


def _output_cls(span: Span, kwargs: Mapping[str, Any]) -> type[BaseModel] | None:
    """What the answer will be parsed to. Beyond an engine or another tool's call it is somebody else's."""
    sent = [(tool.get("function") or {}).get("name") for tool in tools_to_wire(kwargs.get("tools"))]
    for item in span.lineage():
        if item.is_engine:
            return None
        if item.output_cls is not None:
            return item.output_cls
        if item.only_tool is not None:
            return item.only_tool.fn_schema if sent == [item.only_tool.name] else None
    return None


def _copied(value: Any) -> Any:
    return value if isinstance(value, type) else json_safe(value)


def _sources(span: Span, messages: list[dict[str, Any]]) -> tuple[Source, ...]:
    """The nodes retrieved for the call: those whose text stands in the prompt or, if none is found, all."""
    nodes = next((item.nodes for item in span.lineage() if item.nodes is not None), None)
    if not nodes:
        return ()
    prompt = "\n".join(text for item in messages if isinstance(text := item["content"], str))
    present = [node for node in nodes if _stands_in(node, prompt)]
    return tuple(
        Source(node_id=item.node.node_id, score=_score(item), document_id=item.node.ref_doc_id)
        for item in present or nodes
    )


def _stands_in(item: Any, prompt: str) -> bool:
    text = item.node.get_content().strip()
    return bool(text) and (text[:_EDGE] in prompt or text[-_EDGE:] in prompt)


def _score(item: Any) -> float | None:
    score = None if item.score is None else float(item.score)
    return score if score is not None and math.isfinite(score) else None


def to_example(call: Call, answer: dict[str, Any], asked: Asked, response: Any) -> Example:
    """The call and its checked answer as an Example. Raises ValueError where they cannot be one."""
    best = max(call.sources, key=lambda source: source.score or 0.0, default=None)
    metadata = {"event_id": call.event_id, "call": call.kind}
    if call.user_query != call.query and call.user_query is not None:
        metadata["user_query"] = call.user_query
    return Example(
        messages=tuple(Message(**message) for message in call.messages),
        answer=Message(**answer),
        transport="tools" if answer.get("tool_calls") else asked.transport,
        answer_schema=asked.schema,
        schema_name=asked.schema_name,
        schema_text=asked.schema_text,
        tools=asked.tools,
        tool_choice=asked.tool_choice,
        parallel_tool_calls=asked.parallel_tool_calls,
        response_format=asked.response_format,
        query=call.query,
        sources=call.sources,
        document_id=(best.document_id or best.node_id) if best else None,
        model=call.model,
        usage=_usage(response),
        metadata=metadata,
    )


def asked_of(call: Call, output_cls: type[BaseModel] | None) -> Asked:
    """What the call asked for."""
    return read_asked(call.messages, call.kwargs, output_cls)


def _usage(response: Any) -> Usage | None:
    told = getattr(response, "additional_kwargs", None) or {}
    raw = _field(getattr(response, "raw", None), "usage")
    prompt = told.get("prompt_tokens", _field(raw, "prompt_tokens"))
    completion = told.get("completion_tokens", _field(raw, "completion_tokens"))
    if not isinstance(prompt, int) and not isinstance(completion, int):
        return None
    return Usage(
        prompt_tokens=prompt if isinstance(prompt, int) else None,
        completion_tokens=completion if isinstance(completion, int) else None,
    )


def finish_reason(response: Any) -> str | None:
    """Why the provider stopped, where it says so."""
    raw = getattr(response, "raw", None)
    choices = _field(raw, "choices")
    holder = choices[0] if isinstance(choices, list) and choices else raw
    reasons = (_field(holder, name) for name in ("finish_reason", "stop_reason", "done_reason"))
    return next((reason for reason in reasons if isinstance(reason, str)), None)


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)
