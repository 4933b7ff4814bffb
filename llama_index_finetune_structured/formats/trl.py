"""Examples <-> TRL's conversational formats: ``messages``/``tools`` and ``prompt``/``completion``.

TRL's chat templates want tool arguments as objects; OpenAI's wire form has them as JSON text.
"""

from __future__ import annotations

import json
from typing import Any

from ..example import Example, Message, compact_json
from .openai import from_openai

__all__ = ["from_trl", "to_trl_messages", "to_trl_prompt_completion"]


def to_trl_messages(example: Example) -> dict[str, Any]:
    """``{"messages": [..., answer], "tools"?: JSON text}``; without templates that mark answers, TRL trains
    on the prompt too: prefer :func:`to_trl_prompt_completion`. Raises ValueError for a broken tool call.
    """
    turns = [_to_trl_message(m) for m in (*example.messages, example.answer)]
    return {"messages": turns} | _tools(example)


def to_trl_prompt_completion(example: Example) -> dict[str, Any]:
    """``{"prompt": [...], "completion": [answer], "tools"?: JSON text}``: the loss is on the answer alone."""
    prompt = [_to_trl_message(m) for m in example.messages]
    return {"prompt": prompt, "completion": [_to_trl_message(example.answer)]} | _tools(example)


def from_trl(row: dict[str, Any]) -> Example:
    """A row of either format, its ``tools`` as a list or as JSON text. Raises ValueError."""
    turns = row.get(
        "messages", _turns(row.get("prompt"), "user") + _turns(row.get("completion"), "assistant")
    )
    if not isinstance(turns, list):
        raise ValueError(f"messages: expected a list, found {type(turns).__name__}")
    tools = row.get("tools")
    chat = {"messages": [_from_trl_message(m) for m in turns]}
    return from_openai(chat | {"tools": json.loads(tools) if isinstance(tools, str) else tools})


def _turns(given: Any, role: str) -> list[Any]:
    if isinstance(given, str):
        return [{"role": role, "content": given}]
    return list(given) if isinstance(given, list) else []


def _tools(example: Example) -> dict[str, str]:
    """As JSON text, which TRL takes: no column type has to fit the schemas of all tools."""
    return {"tools": compact_json(example.tools)} if example.tools else {}


def _to_trl_message(message: Message) -> dict[str, Any]:
    """A message whose absent content is empty text, which templates join without asking."""
    wire = message.wire()
    wire.pop("weight", None)
    wire["content"] = wire["content"] or ""
    if message.tool_calls:
        wire["tool_calls"] = [_with_arguments(call, _loaded) for call in message.tool_calls]
    return wire


def _from_trl_message(message: Any) -> Any:
    if not isinstance(message, dict) or not message.get("tool_calls"):
        return message
    given = message["tool_calls"]
    if not isinstance(given, list):
        raise ValueError(f"tool_calls: expected a list, found {type(given).__name__}")
    calls = [{"id": f"call_{index}"} | _with_arguments(call, _dumped) for index, call in enumerate(given)]
    return message | {"content": message.get("content") or None, "tool_calls": calls}


def _with_arguments(call: Any, convert: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise ValueError("tool_calls: expected {'function': {'name', 'arguments'}}")
    return {**call, "function": {**function, "arguments": convert(function.get("arguments"))}}


def _loaded(arguments: Any) -> Any:
    return json.loads(arguments) if isinstance(arguments, str) else arguments


def _dumped(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else compact_json(arguments)
