"""Rules of OpenAI for the messages and tools of a training line (its API reference and fine-tuning guide)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...example import Example, Message
from .problems import Fault

__all__ = ["openai_faults"]

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_MOST_TOOLS = 128
_IMAGE_URLS = ("https://", "http://", "data:image/")
# Chat completions accept audio and files too; training lines do not.
_PARTS = {"user": ("text", "image_url"), "assistant": ("text", "refusal")}


def openai_faults(example: Example) -> Iterator[Fault]:
    """What OpenAI refuses in a row that has the form of a chat line."""
    turns = (*example.messages, example.answer)
    for message in turns:
        yield from _message_faults(message)
    yield from _tool_faults(example.tools or ())
    yield from _unanswered(example.messages)


def _message_faults(message: Message) -> Iterator[Fault]:
    if message.weight is not None and message.role != "assistant":
        yield Fault("bad_weight", f"a {message.role} message has the weight {message.weight}")
    if message.tool_calls and message.role != "assistant":
        yield Fault("bad_tool", f"a {message.role} message calls tools; only the assistant does")
    for part in message.content if isinstance(message.content, list) else ():
        yield from _part_faults(message.role, part)
    ids = [call.get("id") for call in message.tool_calls or ()]
    for call in message.tool_calls or ():
        name = str(_function(call).get("name"))
        if not _NAME.fullmatch(name):
            yield Fault("bad_name", f"OpenAI takes no function named {name!r}")
        if not call.get("id") or ids.count(call["id"]) > 1:
            yield Fault("bad_tool", f"the call of {name!r} has no id of its own")
        if call.get("type", "function") != "function":
            yield Fault(
                "bad_tool", f"the call of {name!r} has the type {call['type']!r}, expected 'function'"
            )


def _part_faults(role: str, part: Mapping[str, Any]) -> Iterator[Fault]:
    kind, allowed = part.get("type"), _PARTS.get(role, ("text",))
    if kind not in allowed:
        yield Fault(
            "bad_part", f"a {role} message has a part {kind!r}, expected {' or '.join(map(repr, allowed))}"
        )
    elif kind != "image_url":
        if not isinstance(part.get(str(kind)), str):
            yield Fault("bad_part", f"a part {kind!r} of a {role} message has no text")
    else:
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, dict) else None
        if not isinstance(url, str) or not url.startswith(_IMAGE_URLS):
            yield Fault("bad_part", "an image has no URL that begins with https://, http:// or data:image/")


def _tool_faults(tools: Sequence[Mapping[str, Any]]) -> Iterator[Fault]:
    if len(tools) > _MOST_TOOLS:
        yield Fault("bad_tool", f"{len(tools)} tools, at most {_MOST_TOOLS} are allowed")
    for index, tool in enumerate(tools):
        function = _function(tool)
        name, parameters = function.get("name"), function.get("parameters", {})
        if tool.get("type") != "function" or not isinstance(name, str):
            yield Fault("bad_tool", f"tool {index} is no function with a name")
        elif not _NAME.fullmatch(name):
            yield Fault("bad_name", f"OpenAI takes no function named {name!r}")
        elif not isinstance(parameters, dict) or (parameters and parameters.get("type") != "object"):
            yield Fault("bad_tool", f"the parameters of {name!r} are no JSON schema of an object")


def _unanswered(messages: Sequence[Message]) -> Iterator[Fault]:
    """Calls that no tool message answers before the next turn; those of the answer itself need none."""
    waiting: dict[Any, Any] = {}
    for message in messages:
        if message.role == "tool":
            waiting.pop(message.tool_call_id, None)
            continue
        yield from _each_unanswered(waiting)
        waiting = {call.get("id"): _function(call).get("name") for call in message.tool_calls or ()}
    yield from _each_unanswered(waiting)


def _each_unanswered(waiting: Mapping[Any, Any]) -> Iterator[Fault]:
    for number, name in waiting.items():
        yield Fault("unanswered_call", f"no tool message answers the call {number!r} of {name!r}")


def _function(holder: Mapping[str, Any]) -> Mapping[str, Any]:
    function = holder.get("function")
    return function if isinstance(function, Mapping) else {}
