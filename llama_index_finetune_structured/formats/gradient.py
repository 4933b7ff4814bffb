"""Gradient's training lines: Example -> one ``{"inputs": ...}``."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.llms.generic_utils import messages_to_prompt

from ..example import Example, Message
from .transports import schema_prompt
from .wire import message_from_wire

__all__ = ["gradient_prompt", "to_gradient"]


def to_gradient(example: Example, *, structured: bool = False) -> dict[str, Any]:
    """A Gradient line: ``inputs`` is the prompt that GradientModelAdapterLLM sends, followed by the answer.

    ``structured=True`` marks the prompt as not trainable, so that only the answer is learned.
    """
    prompt, answer = gradient_prompt(example), example.answer_text()
    if not structured:
        return {"inputs": prompt + answer}
    return {"inputs": [{"value": prompt, "trainable": False}, {"value": answer, "trainable": True}]}


def gradient_prompt(example: Example) -> str:
    """The text that a completion model is sent: a captured completion as it was, else the messages in one.

    A schema that travelled beside the messages, as a tool or response format, is written into them where
    LlamaIndex's text programs write it. That is what a GradientModelAdapterLLM with ``is_chat_model=True`` sends.
    """
    messages = _with_schema_text(example)
    only = messages[0].content
    if example.metadata.get("call") == "complete" and len(messages) == 1 and isinstance(only, str):
        return only
    return messages_to_prompt([message_from_wire(message.wire()) for message in messages])


def _with_schema_text(example: Example) -> list[Message]:
    messages = list(example.messages)
    if example.transport == "text" or example.answer_schema is None:
        return messages
    index = 0 if messages[0].role == "system" else -1
    content = messages[index].content
    if isinstance(content, str):
        text = content + schema_prompt(example.answer_schema)
        messages[index] = messages[index].model_copy(update={"content": text})
    return messages
