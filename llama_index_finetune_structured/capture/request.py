"""Read from a call which answer was requested: transport, schema, tools, and the schema's text in the prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from pydantic import BaseModel

from ..answer_values import class_schema
from ..example import Transport
from ..formats.wire import json_safe, tools_to_wire
from ..json_schema import schema_title

__all__ = ["AnswerRequest", "read_request", "without_tool_schema"]

_SCHEMA_HEADER = "Here's a JSON schema to follow:"
# LlamaIndex's PydanticOutputParser appends this to the prompt, with the braces doubled.
_SCHEMA_TEXT = re.compile(
    rf"(?:\n\n)?\n{_SCHEMA_HEADER}\n(?P<schema>.+)\n\n"
    r"Output a valid JSON object but do not repeat the schema\.\n?"
)
# Tool choices in the words of OpenAI and Anthropic: some tool must be called, or none has to be.
_ANY_TOOL, _FREE_CHOICE = ("required", "any"), ("auto", "none", "allowed_tools")


@dataclass(slots=True)
class AnswerRequest:
    """The answer that a call requests, as in the fields of an Example.

    ``tools`` and ``response_format`` are as sent, in OpenAI's form. ``forced``: a tool call was required, so an answer
    without one is invalid.
    """

    transport: Transport
    schema: dict[str, Any] | None = None
    schema_name: str | None = None
    schema_text: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    forced: bool = False


def read_request(
    messages: list[dict[str, Any]], kwargs: Mapping[str, Any], output_cls: type[BaseModel] | None
) -> AnswerRequest:
    """Read the request from the call's tools, response format or prompt.

    ``messages``: in OpenAI's wire format. ``kwargs``: those of the LLM method. ``output_cls``: the class that the
    answer will be parsed to; its schema takes precedence over the one that was sent.
    """
    if not kwargs:
        return _text_request(messages, output_cls, None)
    tools = tools_to_wire(kwargs.get("tools"))
    if tools and _choice_type(json_safe(kwargs.get("tool_choice"))) != "none":
        return _tools_request(tools, kwargs, output_cls)
    sent = _sent_schema(kwargs)
    response_format = _response_format(kwargs)
    if sent is not None:
        name, schema = sent
        schema = class_schema(output_cls) if output_cls is not None else schema
        return AnswerRequest("json_schema", schema, name, response_format=response_format)
    return _text_request(messages, output_cls, response_format)


def _tools_request(
    tools: list[dict[str, Any]], kwargs: Mapping[str, Any], output_cls: type[BaseModel] | None
) -> AnswerRequest:
    choice = json_safe(kwargs.get("tool_choice"))
    parallel = kwargs.get("parallel_tool_calls")
    tool = _forced_tool(tools, choice)
    if len(tools) == 1 and (output_cls is not None or parallel is False):
        tool = tools[0]  # the tool of a structured program; LlamaIndex does not force it when streaming
    function = (tool or {}).get("function") or {}
    schema = class_schema(output_cls) if tool and output_cls is not None else function.get("parameters")
    return AnswerRequest(
        "tools",
        schema if isinstance(schema, dict) else None,
        function.get("name"),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=parallel if isinstance(parallel, bool) else None,
        response_format=_response_format(kwargs),
        forced=_choice_type(choice) in _ANY_TOOL
        or (isinstance(choice, dict) and _choice_type(choice) not in _FREE_CHOICE),
    )


def _choice_type(choice: Any) -> Any:
    """The type of a tool choice: a plain string with OpenAI, ``{"type": ...}`` with Anthropic."""
    return choice.get("type") if isinstance(choice, dict) else choice


def without_tool_schema(request: AnswerRequest) -> AnswerRequest:
    """The request for a text answer where tools were optional: the tool's schema does not apply to it."""
    return replace(request, schema=None, schema_name=None) if request.transport == "tools" else request


def _forced_tool(tools: list[dict[str, Any]], choice: Any) -> dict[str, Any] | None:
    """The tool that the model must call, or None where it may choose."""
    if _choice_type(choice) in _ANY_TOOL:
        return tools[0] if len(tools) == 1 else None
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else choice.get("name")
        return next((tool for tool in tools if (tool.get("function") or {}).get("name") == name), None)
    return None


def _response_format(kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    value = kwargs.get("response_format")
    if isinstance(value, type) and issubclass(value, BaseModel):
        schema = {"name": value.__name__, "schema": class_schema(value)}
        return {"type": "json_schema", "json_schema": schema}
    return json_safe(value) if isinstance(value, Mapping) else None


def _sent_schema(kwargs: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]] | None:
    """(name, schema) from ``response_format``, or from the keyword arguments of local servers."""
    wrapped = (_response_format(kwargs) or {}).get("json_schema")
    if isinstance(wrapped, dict) and isinstance(wrapped.get("schema"), dict):
        return wrapped.get("name"), wrapped["schema"]
    for key in ("json_schema", "guided_json", "format"):
        value = kwargs.get(key)
        if isinstance(value, Mapping) and value:
            schema = json_safe(value)
            return schema.get("title"), schema
    return None


def _text_request(
    messages: list[dict[str, Any]], output_cls: type[BaseModel] | None, response_format: dict[str, Any] | None
) -> AnswerRequest:
    text, schema = _schema_in_prompt(messages)
    if output_cls is not None:
        schema = class_schema(output_cls)
        text = text or _find_schema(messages, schema)
    return AnswerRequest(
        "text", schema, schema_title(schema), schema_text=text, response_format=response_format
    )


def _schema_in_prompt(messages: list[dict[str, Any]]) -> tuple[str | None, dict[str, Any] | None]:
    """(text, schema) that LlamaIndex's output parser appended to the prompt."""
    for message in messages:
        text = message["content"]
        if isinstance(text, str) and _SCHEMA_HEADER in text and (match := _SCHEMA_TEXT.search(text)):
            schema = _parse_schema(match["schema"])
            if schema is not None:
                return match[0], schema
    return None, None


@lru_cache(maxsize=256)
def _parse_schema(text: str) -> dict[str, Any] | None:
    doubled = text.startswith("{{")
    try:
        schema = json.loads(text.replace("{{", "{").replace("}}", "}") if doubled else text)
    except ValueError:
        return None
    return schema if isinstance(schema, dict) else None


def _find_schema(messages: list[dict[str, Any]], schema: dict[str, Any]) -> str | None:
    """The schema as a message contains it, in whatever layout the host wrote it."""
    for form in _serializations(json.dumps(schema)):
        if any(form in text for message in messages if isinstance(text := message["content"], str)):
            return form
    return None


@lru_cache(maxsize=256)
def _serializations(dumped: str) -> tuple[str, ...]:
    """The usual layouts of a schema, each also with the braces doubled for a format string."""
    schema = json.loads(dumped)
    plain = [
        json.dumps(schema, indent=indent, ensure_ascii=ascii)
        for indent in (None, 2, 4)
        for ascii in (False, True)
    ]
    return tuple(dict.fromkeys(plain + [text.replace("{", "{{").replace("}", "}}") for text in plain]))
