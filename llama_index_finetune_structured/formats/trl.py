"""Convert Examples to TRL's conversational formats and back: ``messages``, and ``prompt`` with ``completion``.

Tool arguments are objects here, as chat templates require; OpenAI's wire format has them as JSON text. Reasoning
stands beside the content, as ``reasoning_content``, where templates that write reasoning look for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ..example import Example, Message, compact_json
from .openai import from_openai, sent_tools

__all__ = ["from_trl", "to_trl_messages", "to_trl_prompt_completion"]


def to_trl_messages(example: Example) -> dict[str, Any]:
    """Convert an Example to ``{"messages": [..., answer], "tools"?: JSON text}``.

    With a chat template that does not mark answers, TRL trains on the prompt too; prefer
    ``to_trl_prompt_completion``.

    Args:
        example: The example to convert.

    Raises:
        ValueError: A tool call is malformed.
    """
    turns = [_to_trl_message(m) for m in (*example.messages, example.answer)]
    return {"messages": turns} | _tools(example)


def to_trl_prompt_completion(example: Example) -> dict[str, Any]:
    """Convert an Example to ``{"prompt": [...], "completion": [answer], "tools"?: JSON text}``.

    TRL computes the loss on the completion only.

    Args:
        example: The example to convert.

    Raises:
        ValueError: A tool call is malformed.
    """
    prompt = [_to_trl_message(m) for m in example.messages]
    return {"prompt": prompt, "completion": [_to_trl_message(example.answer)]} | _tools(example)


def from_trl(row: dict[str, Any]) -> Example:
    """Convert a row of either format to an Example.

    Args:
        row: ``messages``, or ``prompt`` (messages, or text) and ``completion`` (one message, or text), and
            optionally ``tools`` as a list or as JSON text. The keys and forms of OpenAI's chat lines, the legacy
            ones too, are read as OpenAI means them.

    Raises:
        ValueError: The row is malformed; the message names the field.
    """
    if "messages" in row:
        turns = row["messages"]
    else:
        turns = _turns(row.get("prompt"), "user") + _completion(row.get("completion"))
    if not isinstance(turns, list):
        raise ValueError(f"messages: expected a list, found {type(turns).__name__}")
    tools = row.get("tools")
    chat = {"messages": [_from_trl_message(m) for m in turns]}
    chat |= {key: row[key] for key in ("functions", "parallel_tool_calls") if key in row}
    return from_openai(chat | {"tools": json.loads(tools) if isinstance(tools, str) else tools})


def _completion(column: Any) -> list[Any]:
    """The answer, as the only message. Raises ValueError for more: TRL trains on all of them, an Example on one."""
    turns = _turns(column, "assistant")
    if len(turns) != 1:
        raise ValueError(
            f"completion: expected text or a list of one message, the answer, found {len(turns)}"
        )
    return turns


def _turns(column: Any, role: str) -> list[Any]:
    if isinstance(column, str):
        return [{"role": role, "content": column}]
    return list(column) if isinstance(column, list) else []


def _tools(example: Example) -> dict[str, Any]:
    """The tools as JSON text: as objects, one column type would have to fit the schemas of all rows.

    TRL does not read ``parallel_tool_calls``; it tells an agent's rows from a program's when they are read here again.
    """
    sent = sent_tools(example)
    return {**sent, "tools": compact_json(example.tools)} if sent else {}


def _to_trl_message(message: Message) -> dict[str, Any]:
    """A message with arguments as objects; absent content is "", as chat templates concatenate it unchecked."""
    wire = message.wire(reasoning=True)
    wire.pop("weight", None)
    wire["content"] = wire["content"] or ""
    if message.tool_calls:
        wire["tool_calls"] = [_with_arguments(call, _loaded) for call in message.tool_calls]
    return wire


def _from_trl_message(message: Any) -> Any:
    if not isinstance(message, dict) or not message.get("tool_calls"):
        return message
    items = message["tool_calls"]
    if not isinstance(items, list):
        raise ValueError(f"tool_calls: expected a list, found {type(items).__name__}")
    calls = [{"id": f"call_{index}"} | _with_arguments(call, _dumped) for index, call in enumerate(items)]
    return message | {"content": message.get("content") or None, "tool_calls": calls}


def _with_arguments(call: Any, convert: Callable[[Any], Any]) -> dict[str, Any]:
    """The call with its arguments converted by ``convert``. Raises ValueError where it is malformed."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise ValueError("tool_calls: expected {'function': {'name', 'arguments'}}")
    return {**call, "function": {**function, "arguments": convert(function.get("arguments"))}}


def _loaded(arguments: Any) -> Any:
    return json.loads(arguments) if isinstance(arguments, str) else arguments


def _dumped(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else compact_json(arguments)
