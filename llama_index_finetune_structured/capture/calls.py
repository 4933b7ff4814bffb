"""Copy an LLM call when it starts, and build its Example row when it has ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from ..formats.wire import json_safe, message_to_wire, source_of, tools_to_wire
from .request import AnswerRequest
from .spans import Call, Span, SpanOwner

__all__ = [
    "example_row",
    "finish_reason",
    "prompt_messages",
    "reasoning_tokens",
    "start_call",
    "token_usage",
    "wire_texts",
]

_KEPT_ARGUMENTS = (  # those that say which answer was requested
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "json_schema",
    "guided_json",
    "format",
)
_EDGE = 64  # characters; chosen: long enough to identify a node by its start or end in a prompt


def prompt_messages(prompt: str) -> list[dict[str, Any]]:
    """A completion's prompt as one user message."""
    return [{"role": "user", "content": prompt}]


def wire_texts(messages: list[dict[str, Any]]) -> list[str]:
    """The texts of messages in OpenAI's wire format, those with instructions excepted."""
    contents = [
        message.get("content") for message in messages if message["role"] not in ("system", "developer")
    ]
    parts = [part for content in contents for part in (content if isinstance(content, list) else [content])]
    texts = (part.get("text") if isinstance(part, dict) else part for part in parts)
    return [text for text in texts if isinstance(text, str)]


def start_call(
    span: Span,
    owners: frozenset[SpanOwner],
    *,
    event_id: str,
    kind: str,
    messages: Any,
    kwargs: Mapping[str, Any],
    model: Any,
) -> Call:
    """Copy a call that starts in ``span``, with the query and the retrieved nodes that it is made for.

    ``messages``: chat messages, or the prompt of a completion. ``kwargs``: those of the LLM method.
    """
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
        kwargs={key: _copied(kwargs[key]) for key in _KEPT_ARGUMENTS if kwargs.get(key) is not None}
        if kwargs
        else {},
        model=model if isinstance(model, str) else None,
        output_cls=_output_cls(lineage, kwargs),
        query=queries[0] if queries else None,
        user_query=queries[-1] if queries else None,
        sources=_sources(lineage, wire),
        labels=span.labels,
    )


def _output_cls(lineage: list[Span], kwargs: Mapping[str, Any]) -> type[BaseModel] | None:
    """The class the answer will be parsed to: the nearest one within the engine or tool call around the LLM call."""
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
    """A deep copy; a class, such as a ``response_format``, is kept for its schema."""
    return value if isinstance(value, type) else json_safe(value)


def _sources(lineage: list[Span], messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The nodes retrieved for the call: those whose text the prompt contains or, if none does, all."""
    nodes = next((item.nodes for item in lineage if item.nodes is not None), None)
    if not nodes:
        return []
    prompt = "\n".join(text for item in messages if isinstance(text := item["content"], str))
    present = [node for node in nodes if _in_prompt(node, prompt)]
    return [source_of(node).model_dump(exclude_none=True) for node in present or nodes]


def _in_prompt(item: Any, prompt: str) -> bool:
    """Whether the prompt contains the node's start or end; its middle may have been cut to fit."""
    text = item.node.get_content().strip()
    return bool(text) and (text[:_EDGE] in prompt or text[-_EDGE:] in prompt)


def example_row(call: Call, answer: dict[str, Any], request: AnswerRequest, response: Any) -> dict[str, Any]:
    """The fields of the Example for a call and its checked ``answer``; absent fields are left out."""
    row: dict[str, Any] = {
        "messages": call.messages,
        "answer": answer,
        "transport": "tools" if answer.get("tool_calls") else request.transport,
        "metadata": {"event_id": call.event_id, "call": call.kind},
    }
    if request.schema is not None or request.tools is not None or request.response_format is not None:
        fields = {
            "answer_schema": request.schema,
            "schema_name": request.schema_name,
            "schema_text": request.schema_text,
            "tools": request.tools,
            "tool_choice": request.tool_choice,
            "parallel_tool_calls": request.parallel_tool_calls,
            "response_format": request.response_format,
        }
        row |= {name: value for name, value in fields.items() if value is not None}
    if call.query is not None:
        row["query"] = call.query
        if call.user_query != call.query:
            row["metadata"]["user_query"] = call.user_query
    if call.sources:
        best = max(call.sources, key=lambda source: source.get("score", 0.0))
        row["sources"] = call.sources
        row["document_id"] = best.get("document_id", best["node_id"])
    if call.labels is not None:
        row["metadata"] |= call.labels.metadata
        if call.labels.document_id is not None:
            row["document_id"] = call.labels.document_id
    if call.model is not None:
        row["model"] = call.model
    usage = token_usage(response)
    if usage is not None:
        row["usage"] = usage
    return row


def token_usage(response: Any) -> dict[str, int] | None:
    """The token counts, from LlamaIndex's ``additional_kwargs`` or else from the provider's raw response."""
    extra = getattr(response, "additional_kwargs", None) or {}
    raw = getattr(response, "raw", None)
    if raw is None and not extra:
        return None
    usage = _field(raw, "usage")
    counts = {name: extra.get(name, _field(usage, name)) for name in ("prompt_tokens", "completion_tokens")}
    return {name: count for name, count in counts.items() if isinstance(count, int)} or None


def reasoning_tokens(response: Any) -> int | None:
    """Tokens of the reasoning before an answer, from the raw response; 0 where it counts tokens and names none.

    None where the response counts no tokens.
    """
    usage = _field(getattr(response, "raw", None), "usage")
    found = _field(_field(usage, "completion_tokens_details"), "reasoning_tokens")
    if isinstance(found, int):
        return found
    return 0 if isinstance(_field(usage, "completion_tokens"), int) else None


def finish_reason(response: Any) -> str | None:
    """Why the provider stopped generating, or None where the raw response does not say."""
    raw = getattr(response, "raw", None)
    if raw is None:
        return None
    choices = _field(raw, "choices")
    holder = choices[0] if isinstance(choices, list) and choices else raw
    reasons = (_field(holder, name) for name in ("finish_reason", "stop_reason", "done_reason"))
    return next((reason for reason in reasons if isinstance(reason, str)), None)


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)
