"""Render an Example for the transport that will serve it: json_schema, tools or text.

The transport is where LlamaIndex sends the schema: as ``response_format`` beside the messages, as a tool
definition, or as text in the prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from llama_index.core.output_parsers.pydantic import PYDANTIC_FORMAT_TMPL

from ..errors import DatasetError
from ..example import Example, Message, Transport

__all__ = ["render", "schema_message_index", "schema_prompt"]

_TOOL_SCHEMA_KEYS = ("type", "properties", "required", "definitions", "$defs")
# LlamaIndex describes the tool of a class without docstring by the signature of its own inner function.
_UNDESCRIBED = "(*args: Any, **kwargs: Any) -> ~Model\nModel function."


def render(example: Example, transport: Transport) -> Example:
    """Convert ``example`` to the messages and the answer of ``transport``; the answer's JSON is unchanged.

    Args:
        example: An example with ``answer_schema``; one that has the transport already is returned unchanged.
        transport: "text" inserts the schema into the prompt as LlamaIndex's PydanticOutputParser does, with
            doubled braces; "tools" makes the schema a tool and the answer a call of it; "json_schema" leaves
            schema and tools out of the messages, and the answer is JSON text.

    Raises:
        DatasetError: There is no schema, the answer is not one JSON value or calls several tools, or the schema's
            text cannot be found in the prompt or inserted into it.
    """
    if example.transport == transport:
        return example
    if example.answer_schema is None:
        raise DatasetError(
            f"an example captured as {example.transport!r} without a schema cannot be rendered as "
            f"{transport!r}; give its schema (FinetuneDataset.from_pairs(output_cls=...))"
        )
    bare = _bare(example, example.answer_schema)
    if transport == "text":
        return _as_text(bare, example.answer_schema)
    return _as_tools(bare, example.answer_schema) if transport == "tools" else bare


def schema_prompt(schema: dict[str, Any]) -> str:
    """The exact text that LlamaIndex's PydanticOutputParser appends to the prompt for ``schema``.

    Args:
        schema: JSON schema of the answer.
    """
    text = PYDANTIC_FORMAT_TMPL.format(schema=json.dumps(schema, ensure_ascii=False))
    return "\n\n" + text.replace("{", "{{").replace("}", "}}")


def schema_message_index(messages: Sequence[Message]) -> int:
    """The index of the message to which LlamaIndex appends the schema: a leading system message, else the last."""
    return 0 if messages[0].role == "system" else len(messages) - 1


def _bare(example: Example, schema: dict[str, Any]) -> Example:
    """The json_schema form: no schema text and no tools; the answer is JSON text."""
    _require_json(example)
    return example.model_copy(
        update={
            "messages": _without_schema(example, schema),
            "answer": example.answer.model_copy(
                update={"content": example.answer_text(), "tool_calls": None, "name": None}
            ),
            "transport": "json_schema",
            "schema_text": None,
            "tools": None,
            "tool_choice": None,
            "parallel_tool_calls": None,
            "response_format": None,
        }
    )


def _require_json(example: Example) -> None:
    text = example.answer_text()
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"the answer is not one JSON value: {error}") from error


def _without_schema(example: Example, schema: dict[str, Any]) -> tuple[Message, ...]:
    """The messages without the schema's text. Raises DatasetError where it is not found."""
    if example.transport != "text":
        return example.messages
    schema_texts = [text for text in (example.schema_text, schema_prompt(schema)) if text]
    for index, message in enumerate(example.messages):
        for text in schema_texts:
            if isinstance(message.content, str) and text in message.content:
                cut = message.model_copy(update={"content": message.content.replace(text, "", 1)})
                return (*example.messages[:index], cut, *example.messages[index + 1 :])
    raise DatasetError(
        "the schema's text was not found in the prompt, so it cannot be removed; set schema_text to it"
    )


def _as_text(bare: Example, schema: dict[str, Any]) -> Example:
    index = schema_message_index(bare.messages)
    message, text = bare.messages[index], schema_prompt(schema)
    if not isinstance(message.content, str):
        raise DatasetError(
            f"messages[{index}] holds content parts; expected text, into which the schema can be inserted"
        )
    written = message.model_copy(update={"content": message.content + text})
    messages = (*bare.messages[:index], written, *bare.messages[index + 1 :])
    return bare.model_copy(update={"messages": messages, "transport": "text", "schema_text": text})


def _as_tools(bare: Example, schema: dict[str, Any]) -> Example:
    """The tools form: the one tool that LlamaIndex makes of a class, which has to be called."""
    name = re.sub(r"[^a-zA-Z0-9_-]", "_", str(schema.get("title") or bare.schema_name or "answer"))
    parameters = {key: value for key, value in schema.items() if key in _TOOL_SCHEMA_KEYS}
    parameters["additionalProperties"] = False
    function = {
        "name": name,
        "description": schema.get("description") or f"{schema.get('title') or name}{_UNDESCRIBED}",
        "parameters": parameters,
    }
    call = {
        "id": f"call_{bare.id[:24]}",
        "type": "function",
        "function": {"name": name, "arguments": bare.answer_text()},
    }
    return bare.model_copy(
        update={
            "answer": bare.answer.model_copy(update={"content": None, "tool_calls": [call]}),
            "transport": "tools",
            "tools": [{"type": "function", "function": function}],
            "tool_choice": "required",
            "parallel_tool_calls": False,
        }
    )
