"""What a call asked for: the transport, the schema of its answer, and where the prompt spells it out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from pydantic import BaseModel

from ..example import Transport
from ..formats.wire import json_safe, tools_to_wire

__all__ = ["Asked", "read_asked", "schema_of", "without_tool_schema"]

# LlamaIndex's PydanticOutputParser writes this after the prompt, with the braces doubled.
_SCHEMA_TEXT = re.compile(
    r"(?:\n\n)?\nHere's a JSON schema to follow:\n(?P<schema>.+)\n\n"
    r"Output a valid JSON object but do not repeat the schema\.\n?"
)
_ANY, _FREE = ("required", "any"), ("auto", "none", "allowed_tools")
_MARK = "Here's a JSON schema to follow:"


@dataclass(slots=True)
class Asked:
    """The request beside its messages. ``forced``: an answer without a tool call is a failure."""

    transport: Transport
    schema: dict[str, Any] | None = None
    schema_name: str | None = None
    schema_text: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    forced: bool = False


@lru_cache(maxsize=256)
def schema_of(output_cls: type[BaseModel]) -> dict[str, Any]:
    """The class's JSON schema, computed once; not to be changed."""
    return output_cls.model_json_schema()


def read_asked(
    messages: list[dict[str, Any]], kwargs: Mapping[str, Any], output_cls: type[BaseModel] | None
) -> Asked:
    """Read the schema from the call's tools, response format or prompt; ``output_cls``: what it parses to."""
    if not kwargs:
        return _asked_by_text(messages, output_cls, None)
    tools = tools_to_wire(kwargs.get("tools"))
    if tools and _kind(json_safe(kwargs.get("tool_choice"))) != "none":
        return _asked_by_tools(tools, kwargs, output_cls)
    sent = _sent_schema(kwargs)
    response_format = _response_format(kwargs)
    if sent is not None:
        name, schema = sent
        schema = schema_of(output_cls) if output_cls is not None else schema
        return Asked("json_schema", schema, name, response_format=response_format)
    return _asked_by_text(messages, output_cls, response_format)


def _asked_by_tools(
    tools: list[dict[str, Any]], kwargs: Mapping[str, Any], output_cls: type[BaseModel] | None
) -> Asked:
    choice = json_safe(kwargs.get("tool_choice"))
    parallel = kwargs.get("parallel_tool_calls")
    tool = _forced_tool(tools, choice)
    if len(tools) == 1 and (output_cls is not None or parallel is False):
        tool = tools[0]  # a program's: streamed ones leave the choice to the model
    function = (tool or {}).get("function") or {}
    schema = schema_of(output_cls) if tool and output_cls is not None else function.get("parameters")
    return Asked(
        "tools",
        schema if isinstance(schema, dict) else None,
        function.get("name"),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=parallel if isinstance(parallel, bool) else None,
        response_format=_response_format(kwargs),
        forced=_kind(choice) in _ANY or (isinstance(choice, dict) and _kind(choice) not in _FREE),
    )


def _kind(choice: Any) -> Any:
    """A tool choice in a word; OpenAI says it plainly, Anthropic as ``{"type": word}``."""
    return choice.get("type") if isinstance(choice, dict) else choice


def without_tool_schema(asked: Asked) -> Asked:
    """What was asked, for an answer in prose where a tool might have been called: no schema is its own."""
    return replace(asked, schema=None, schema_name=None) if asked.transport == "tools" else asked


def _forced_tool(tools: list[dict[str, Any]], choice: Any) -> dict[str, Any] | None:
    if _kind(choice) in _ANY:
        return tools[0] if len(tools) == 1 else None
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else choice.get("name")
        return next((tool for tool in tools if (tool.get("function") or {}).get("name") == name), None)
    return None


def _response_format(kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    value = kwargs.get("response_format")
    if isinstance(value, type) and issubclass(value, BaseModel):
        schema = {"name": value.__name__, "schema": schema_of(value)}
        return {"type": "json_schema", "json_schema": schema}
    return json_safe(value) if isinstance(value, Mapping) else None


def _sent_schema(kwargs: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]] | None:
    """(name, schema) from ``response_format``, or from the keywords by which local servers take a schema."""
    wrapped = (_response_format(kwargs) or {}).get("json_schema")
    if isinstance(wrapped, dict) and isinstance(wrapped.get("schema"), dict):
        return wrapped.get("name"), wrapped["schema"]
    for key in ("json_schema", "guided_json", "format"):
        value = kwargs.get(key)
        if isinstance(value, Mapping) and value:
            schema = json_safe(value)
            return schema.get("title"), schema
    return None


def _asked_by_text(
    messages: list[dict[str, Any]], output_cls: type[BaseModel] | None, response_format: dict[str, Any] | None
) -> Asked:
    text, schema = _spelled_out(messages)
    if output_cls is not None:
        schema = schema_of(output_cls)
        text = text or _find_schema(messages, schema)
    title = schema.get("title") if schema else None
    name = title if isinstance(title, str) else None
    return Asked("text", schema, name, schema_text=text, response_format=response_format)


def _spelled_out(messages: list[dict[str, Any]]) -> tuple[str | None, dict[str, Any] | None]:
    for message in messages:
        text = message["content"]
        if isinstance(text, str) and _MARK in text and (match := _SCHEMA_TEXT.search(text)):
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
    for plain in _spellings(json.dumps(schema)):
        if any(plain in text for message in messages if isinstance(text := message["content"], str)):
            return plain
    return None


@lru_cache(maxsize=256)
def _spellings(dumped: str) -> tuple[str, ...]:
    schema = json.loads(dumped)
    plain = [
        json.dumps(schema, indent=indent, ensure_ascii=ascii)
        for indent in (None, 2, 4)
        for ascii in (False, True)
    ]
    return tuple(dict.fromkeys(plain + [text.replace("{", "{{").replace("}", "}}") for text in plain]))
