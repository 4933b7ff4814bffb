"""One LLM call: what is copied when it starts, and the Example's row that it becomes when it has ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from ..formats.wire import json_safe, message_to_wire, source_of, tools_to_wire
from .request import Asked
from .spans import Span

__all__ = ["Call", "finish_reason", "prompt_messages", "start_call", "to_row"]

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


@dataclass(slots=True)
class Call:
    """A started call; everything in it is a copy, so that the host may change its own objects.

    ``stopped``: why the provider stopped, as a stream said before its last chunk.
    """

    event_id: str
    kind: str
    owners: frozenset[Any]
    messages: list[dict[str, Any]]
    kwargs: dict[str, Any]
    model: str | None
    output_cls: type[BaseModel] | None
    query: str | None
    user_query: str | None
    sources: list[dict[str, Any]]
    stopped: str | None = None


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
    model: Any,
) -> Call:
    """Copy a call that begins in ``span``, with the query and the nodes it is made for."""
    if isinstance(messages, str):
        wire = prompt_messages(messages)
    else:
        wire = [message_to_wire(message) for message in messages]
    lineage = span.lineage()
    queries = [item.query for item in lineage if item.query is not None]
    return Call(
        event_id=event_id,
        kind=kind,
        owners=owners,
        messages=wire,
        kwargs={key: _copied(kwargs[key]) for key in _KEPT if kwargs.get(key) is not None} if kwargs else {},
        model=model if isinstance(model, str) else None,
        output_cls=_output_cls(lineage, kwargs),
        query=queries[0] if queries else None,
        user_query=queries[-1] if queries else None,
        sources=_sources(lineage, wire),
    )


def _output_cls(lineage: list[Span], kwargs: Mapping[str, Any]) -> type[BaseModel] | None:
    """What the answer will be parsed to. Beyond an engine or another tool's call it is somebody else's."""
    for item in lineage:
        if item.is_engine:
            return None
        if item.output_cls is not None:
            return item.output_cls
        if item.only_tool is not None:
            tools = tools_to_wire(kwargs.get("tools"))
            sent = [(tool.get("function") or {}).get("name") for tool in tools]
            return item.only_tool.fn_schema if sent == [item.only_tool.name] else None
    return None


def _copied(value: Any) -> Any:
    return value if isinstance(value, type) else json_safe(value)


def _sources(lineage: list[Span], messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The nodes retrieved for the call: those whose text stands in the prompt or, if none is found, all."""
    nodes = next((item.nodes for item in lineage if item.nodes is not None), None)
    if not nodes:
        return []
    prompt = "\n".join(text for item in messages if isinstance(text := item["content"], str))
    present = [node for node in nodes if _stands_in(node, prompt)]
    return [source_of(node).model_dump(exclude_none=True) for node in present or nodes]


def _present(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _stands_in(item: Any, prompt: str) -> bool:
    text = item.node.get_content().strip()
    return bool(text) and (text[:_EDGE] in prompt or text[-_EDGE:] in prompt)


def to_row(call: Call, answer: dict[str, Any], asked: Asked, response: Any) -> dict[str, Any]:
    """The call and its checked answer as the fields of an Example, absent ones left out."""
    row: dict[str, Any] = {
        "messages": call.messages,
        "answer": answer,
        "transport": "tools" if answer.get("tool_calls") else asked.transport,
        "metadata": {"event_id": call.event_id, "call": call.kind},
    }
    if asked.schema is not None or asked.tools is not None or asked.response_format is not None:
        row |= _present(
            answer_schema=asked.schema,
            schema_name=asked.schema_name,
            schema_text=asked.schema_text,
            tools=asked.tools,
            tool_choice=asked.tool_choice,
            parallel_tool_calls=asked.parallel_tool_calls,
            response_format=asked.response_format,
        )
    if call.query is not None:
        row["query"] = call.query
        if call.user_query != call.query:
            row["metadata"]["user_query"] = call.user_query
    if call.sources:
        best = max(call.sources, key=lambda source: source.get("score", 0.0))
        row["sources"] = call.sources
        row["document_id"] = best.get("document_id", best["node_id"])
    if call.model is not None:
        row["model"] = call.model
    usage = _usage(response)
    if usage is not None:
        row["usage"] = usage
    return row


def _usage(response: Any) -> dict[str, int] | None:
    told = getattr(response, "additional_kwargs", None) or {}
    raw = getattr(response, "raw", None)
    if raw is None and not told:
        return None
    reported = _field(raw, "usage")
    counts = {name: told.get(name, _field(reported, name)) for name in ("prompt_tokens", "completion_tokens")}
    return {name: count for name, count in counts.items() if isinstance(count, int)} or None


def finish_reason(response: Any) -> str | None:
    """Why the provider stopped, where it says so."""
    raw = getattr(response, "raw", None)
    if raw is None:
        return None
    choices = _field(raw, "choices")
    holder = choices[0] if isinstance(choices, list) and choices else raw
    reasons = (_field(holder, name) for name in ("finish_reason", "stop_reason", "done_reason"))
    return next((reason for reason in reasons if isinstance(reason, str)), None)


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)
