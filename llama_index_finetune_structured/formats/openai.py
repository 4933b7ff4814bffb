"""Convert Examples to OpenAI chat lines and back, including the legacy form with functions."""

from __future__ import annotations

from typing import Any

from ..example import Example, Message

__all__ = ["from_openai", "sent_tools", "to_openai"]


def to_openai(example: Example, *, functions: bool = False) -> dict[str, Any]:
    """Convert an Example to an OpenAI chat line.

    Args:
        example: The example to convert.
        functions: Whether to write the legacy form with ``functions`` and ``function_call``.

    Returns:
        ``messages`` with the answer last, and ``tools`` and ``parallel_tool_calls`` where they were sent.

    Raises:
        ValueError: With ``functions``, a turn has more than one tool call, which the legacy form cannot express.
    """
    messages = [message.wire() for message in (*example.messages, example.answer)]
    if functions:
        return _legacy(messages, example)
    return {"messages": messages, **sent_tools(example)}


def sent_tools(example: Example) -> dict[str, Any]:
    """``tools`` and ``parallel_tool_calls`` of an example, where they were sent."""
    if not example.tools:
        return {}
    parallel = example.parallel_tool_calls
    return {"tools": example.tools} | ({} if parallel is None else {"parallel_tool_calls": parallel})


def _legacy(messages: list[dict[str, Any]], example: Example) -> dict[str, Any]:
    names = {
        call.get("id", ""): call["function"]["name"]
        for item in messages
        for call in item.get("tool_calls") or ()
    }
    line: dict[str, Any] = {"messages": [_legacy_message(message, names) for message in messages]}
    if example.tools:
        line["functions"] = [tool["function"] for tool in example.tools if "function" in tool]
    return line


def _legacy_message(message: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    kept = {key: value for key, value in message.items() if key not in ("tool_calls", "tool_call_id")}
    if message["role"] == "tool":
        return {
            **kept,
            "role": "function",
            "name": names.get(message.get("tool_call_id", ""), kept.get("name", "")),
        }
    calls = message.get("tool_calls")
    if not calls:
        return kept
    if len(calls) > 1:
        raise ValueError(
            f"{len(calls)} tool calls in one turn: the legacy functions form holds one; use tools"
        )
    return {**kept, "function_call": calls[0]["function"]}


def from_openai(line: dict[str, Any]) -> Example:
    """Convert an OpenAI chat line, in the current or the legacy form, to an Example.

    Args:
        line: The parsed line. The schema of a called tool that is the only one becomes ``answer_schema``, unless
            the line says that several calls were allowed, as agents' do.

    Raises:
        ValueError: The line is malformed; the message names the field.
    """
    messages = line.get("messages")
    if not isinstance(messages, list) or len(messages) < 2:
        raise ValueError("messages: expected a list of at least one message and the answer")
    parsed = [
        Message.model_validate(_modern_message(message, index)) for index, message in enumerate(messages)
    ]
    tools = _tools(line)
    answer = parsed[-1]
    is_program = len(tools) == 1 and answer.tool_calls and line.get("parallel_tool_calls") is not True
    single = tools[0].get("function", {}) if is_program else {}
    return Example(
        messages=tuple(parsed[:-1]),
        answer=answer,
        transport="tools" if tools else "text",
        answer_schema=single.get("parameters"),
        schema_name=single.get("name"),
        tools=tools or None,
        parallel_tool_calls=line.get("parallel_tool_calls"),
    )


def _tools(line: dict[str, Any]) -> list[dict[str, Any]]:
    """The line's tools, or else its legacy ``functions`` as tools. Raises ValueError naming the field."""
    name = "tools" if line.get("tools") else "functions"
    items = line.get(name) or []
    if not isinstance(items, list):
        raise ValueError(f"{name}: expected a list, found {type(items).__name__}")
    tools = items if name == "tools" else [{"type": "function", "function": item} for item in items]
    for index, tool in enumerate(tools):
        function = tool.get("function", {}) if isinstance(tool, dict) else tool
        if not isinstance(function, dict):
            raise ValueError(
                f"{name}.{index}: expected a function as an object, found {type(function).__name__}"
            )
    return tools


def _modern_message(message: Any, index: int) -> Any:
    """A message in the current form; legacy calls, which have no ids, are numbered by their message."""
    if not isinstance(message, dict):
        raise ValueError(f"messages.{index}: expected an object, found {type(message).__name__}")
    kept = dict(message)
    call = kept.pop("function_call", None)
    if isinstance(call, dict):
        kept["tool_calls"] = [{"id": f"call_{index}", "type": "function", "function": call}]
    if kept.get("role") == "function":
        kept |= {"role": "tool", "tool_call_id": f"call_{index - 1}"}
    return kept
