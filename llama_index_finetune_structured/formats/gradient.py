"""Convert Examples to Gradient training lines, ``{"inputs": ...}``."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.llms.generic_utils import messages_to_prompt

from ..errors import DatasetError
from ..example import Example, Message
from .transports import schema_message_index, schema_prompt
from .wire import message_from_wire

__all__ = ["gradient_prompt", "to_gradient"]


def to_gradient(example: Example, *, structured: bool = False) -> dict[str, Any]:
    """Convert an Example to a Gradient line: the prompt that GradientModelAdapterLLM sends, then the answer.

    Args:
        example: The example to convert.
        structured: Whether to split ``inputs`` into two parts and mark the prompt as not trainable, so that only
            the answer contributes to the loss.

    Returns:
        ``{"inputs": text}``, with ``structured`` ``{"inputs": [{"value", "trainable"}, ...]}``.

    Raises:
        DatasetError: A message has a part that is not text, or the answer is not one text (``answer_text``).
    """
    prompt, answer = gradient_prompt(example), example.answer_text()
    if not structured:
        return {"inputs": prompt + answer}
    return {"inputs": [{"value": prompt, "trainable": False}, {"value": answer, "trainable": True}]}


def gradient_prompt(example: Example) -> str:
    """The prompt of a completion model: that of a captured completion, else the messages joined by LlamaIndex.

    A schema that was sent beside the messages, as a tool or response format, is inserted into them where
    LlamaIndex's text programs insert it, as a GradientModelAdapterLLM with ``is_chat_model=True`` does.

    Args:
        example: The example; its answer is not used.

    Raises:
        DatasetError: A message has a part that is not text.
    """
    messages = _with_schema_text(example)
    for index, message in enumerate(messages):
        parts = message.content if isinstance(message.content, list) else []
        if kinds := [str(part.get("type")) for part in parts if part.get("type") != "text"]:
            raise DatasetError(
                f"messages[{index}] has a part of type {kinds[0]!r}, expected text: Gradient's models read no "
                "other; leave the row out"
            )
    only = messages[0].content
    if example.metadata.get("call") == "complete" and len(messages) == 1 and isinstance(only, str):
        return only
    return messages_to_prompt([message_from_wire(message.wire()) for message in messages])


def _with_schema_text(example: Example) -> list[Message]:
    """The messages with the schema's text; unchanged where it is in them already or they hold content parts."""
    messages = list(example.messages)
    if example.transport == "text" or example.answer_schema is None:
        return messages
    index = schema_message_index(messages)
    content = messages[index].content
    if isinstance(content, str):
        text = content + schema_prompt(example.answer_schema)
        messages[index] = messages[index].model_copy(update={"content": text})
    return messages
