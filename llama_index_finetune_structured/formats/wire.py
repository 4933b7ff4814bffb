"""Convert LlamaIndex messages, responses, tools and nodes to OpenAI's wire format and back; all is copied."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.schema import NodeWithScore

from ..errors import DatasetError
from ..example import Message, Source

__all__ = [
    "json_safe",
    "message_from_wire",
    "message_of",
    "message_to_wire",
    "response_to_wire",
    "schema_format",
    "source_of",
    "tools_to_wire",
]

_ROLES = {role: role.value for role in MessageRole} | dict.fromkeys(
    (MessageRole.CHATBOT, MessageRole.MODEL), "assistant"
)

_NO_CONTENT = (ToolCallBlock, ThinkingBlock, CachePoint)


def json_safe(value: Any) -> Any:
    """A deep copy that JSON can represent.

    Args:
        value: Any value. Pydantic models are dumped, classes become their names, sets and tuples lists, keys
            text; NaN, infinities and all other objects become ``str(value)``.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [json_safe(item) for item in value]
    if isinstance(value, type):
        return value.__name__
    dump = getattr(value, "model_dump", None)
    return json_safe(dump(mode="json", exclude_none=True)) if callable(dump) else str(value)


def message_to_wire(message: ChatMessage) -> dict[str, Any]:
    """Convert a chat message to OpenAI's wire format.

    Args:
        message: LlamaIndex's message. Text stays a string, other blocks become content parts, tool calls are
            read from blocks or ``additional_kwargs``, and cache points are dropped. The thinking of an assistant
            becomes ``reasoning_content``, without its signatures.
    """
    blocks, extra, role = message.blocks, message.additional_kwargs, _ROLES[message.role]
    if not extra and len(blocks) == 1 and type(blocks[0]) is TextBlock:
        return {"role": role, "content": blocks[0].text}
    parts = [_part(block) for block in blocks if not isinstance(block, _NO_CONTENT)]
    text_only = all(part["type"] == "text" for part in parts)
    content = "".join(part["text"] for part in parts) if text_only else parts
    wire: dict[str, Any] = {"role": role, "content": content}
    calls = _tool_calls(message)
    if calls:
        wire["tool_calls"] = calls
        wire["content"] = content or None
    if role == "assistant" and (reasoning := _reasoning(blocks)):
        wire["reasoning_content"] = reasoning
    for key in ("tool_call_id", "name"):
        if isinstance(extra.get(key), str):
            wire[key] = extra[key]
    return wire


def message_of(message: ChatMessage, *, text_only: bool = False) -> Message:
    """Convert a chat message to a Message, for training data and prompts.

    Args:
        message: LlamaIndex's message; see ``message_to_wire`` for what becomes of its blocks.
        text_only: Whether to refuse images too, as a local model reads text only.

    Raises:
        DatasetError: A block has no form in OpenAI's chat messages (audio, video, documents, citations), or is an
            image where ``text_only``; the message names it.
    """
    allowed = (TextBlock, *_NO_CONTENT) if text_only else (TextBlock, ImageBlock, *_NO_CONTENT)
    for index, block in enumerate(message.blocks):
        if not isinstance(block, allowed):
            kinds = "text and tool calls" if text_only else "text, images and tool calls"
            raise DatasetError(
                f"block {index} of a {message.role.value} message is of type {block.block_type!r}, expected "
                f"{kinds}; leave it out, or write its content as text"
            )
    return Message.model_validate(message_to_wire(message))


def _reasoning(blocks: Iterable[Any]) -> str:
    """The text of thinking blocks; encrypted ones have none."""
    texts = (block.content for block in blocks if isinstance(block, ThinkingBlock))
    return "\n\n".join(text for text in texts if text and text.strip())


def _part(block: Any) -> dict[str, Any]:
    if isinstance(block, TextBlock):
        return {"type": "text", "text": block.text}
    kind = getattr(block, "block_type", "unknown")
    if kind == "image":
        url = str(block.url) if block.url else block.inline_url()
        detail = {"detail": block.detail} if block.detail else {}
        return {"type": "image_url", "image_url": {"url": url, **detail}}
    return {"type": str(kind), **json_safe(block.model_dump(mode="json", exclude={"block_type"}))}


def _tool_calls(message: ChatMessage) -> list[dict[str, Any]]:
    """The tool calls, from blocks or, with older integrations, from ``additional_kwargs``."""
    calls = [
        _call(block.tool_call_id, block.tool_name, block.tool_kwargs)
        for block in message.blocks
        if isinstance(block, ToolCallBlock)
    ]
    if calls:
        return calls
    for item in message.additional_kwargs.get("tool_calls") or ():
        call = json_safe(item)
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            calls.append(_call(call.get("id"), function.get("name"), function.get("arguments")))
    return calls


def _call(call_id: Any, name: Any, arguments: Any) -> dict[str, Any]:
    text = arguments if isinstance(arguments, str) else json.dumps(json_safe(arguments), ensure_ascii=False)
    return {
        "id": str(call_id) if call_id else "call_0",
        "type": "function",
        "function": {"name": str(name or ""), "arguments": text},
    }


def response_to_wire(response: Any) -> dict[str, Any]:
    """Convert an LLM's response to the assistant's message in OpenAI's wire format.

    Args:
        response: A ChatResponse or CompletionResponse.
    """
    message = getattr(response, "message", None)
    if message is None:
        wire: dict[str, Any] = {"role": "assistant", "content": str(getattr(response, "text", None) or "")}
        reasoning = (getattr(response, "additional_kwargs", None) or {}).get("reasoning_content")
        return {**wire, "reasoning_content": reasoning} if isinstance(reasoning, str) and reasoning else wire
    return {**message_to_wire(message), "role": "assistant"}


def schema_format(name: str, schema: Any) -> dict[str, Any]:
    """The ``response_format`` that asks for an answer to a JSON schema."""
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}


def tools_to_wire(tools: Any) -> list[dict[str, Any]]:
    """Convert tools as they were sent to a provider to OpenAI's chat form.

    Args:
        tools: Tools in OpenAI's chat form, its flat Responses form or Anthropic's form. Those in another
            provider's form are copied unchanged; what is not a collection of tools gives an empty list.
    """
    if not isinstance(tools, Iterable) or isinstance(tools, (str, Mapping)):
        return []
    return [_tool(tool) for tool in json_safe(tools) if isinstance(tool, dict)]


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    parameters = tool.get("input_schema", tool.get("parameters"))
    if "name" not in tool or not isinstance(parameters, dict):
        return tool
    function = {"name": tool["name"], "description": tool.get("description") or ""}
    strict = {"strict": tool["strict"]} if "strict" in tool else {}
    return {"type": "function", "function": {**function, "parameters": parameters, **strict}}


def message_from_wire(wire: dict[str, Any]) -> ChatMessage:
    """Convert a message in OpenAI's wire format to LlamaIndex's ChatMessage.

    Args:
        wire: A message as ``Message.wire()`` returns it. Tool calls and ``reasoning_content`` become blocks; content
            parts that are neither text nor an image are dropped.
    """
    content = wire.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    blocks: list[Any] = [block for part in parts if (block := _block(part)) is not None]
    if reasoning := wire.get("reasoning_content"):
        blocks.insert(0, ThinkingBlock(content=str(reasoning)))
    for call in wire.get("tool_calls") or ():
        function = call["function"]
        blocks.append(
            ToolCallBlock(
                tool_call_id=call.get("id"),
                tool_name=function["name"],
                tool_kwargs=function.get("arguments") or "{}",
            )
        )
    extra = {key: wire[key] for key in ("tool_call_id", "name") if key in wire}
    return ChatMessage(role=wire["role"], blocks=blocks, additional_kwargs=extra)


def _block(part: dict[str, Any]) -> TextBlock | ImageBlock | None:
    """Convert a text or image part; None for parts of other types, which are dropped."""
    image = part.get("image_url")
    if isinstance(image, dict):
        url = str(image.get("url"))
        return (
            ImageBlock(image=url.partition("base64,")[2].encode(), detail=image.get("detail"))
            if url[:5] == "data:"
            else ImageBlock(url=url, detail=image.get("detail"))
        )
    return TextBlock(text=str(part["text"])) if part.get("text") else None


def source_of(node: NodeWithScore) -> Source:
    """Convert a retrieved node to an Example's source.

    Args:
        node: A retriever's result. A score that is not finite is left out; ``document_id`` of the source is the
            document that the node was cut from, if known.
    """
    score = None if node.score is None else float(node.score)
    return Source(
        node_id=node.node_id,
        score=score if score is not None and math.isfinite(score) else None,
        document_id=node.node.ref_doc_id,
    )
