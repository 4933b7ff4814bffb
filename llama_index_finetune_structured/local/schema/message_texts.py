"""The texts of an example's messages as the caller wrote them, without what a transport added."""

from __future__ import annotations

from collections.abc import Sequence

from ...example import Example, Message

__all__ = ["caller_contents", "caller_texts", "system_texts", "without_schema_text"]

_SYSTEM = ("system", "developer")


def without_schema_text(example: Example) -> list[Message]:
    """The messages without the schema text of the transport they were captured from: serving writes its own.

    It is removed once, from where LlamaIndex appends it: the end of a leading system message, else the last one.
    The same text in a document stays.
    """
    messages, text = list(example.messages), example.schema_text
    if not text:
        return messages
    first = 0 if messages[0].role == "system" else len(messages) - 1
    for index in (first, *range(len(messages) - 1, -1, -1)):
        content = messages[index].content
        if isinstance(content, str) and text in content:
            before, _, after = content.rpartition(text)
            messages[index] = messages[index].model_copy(update={"content": before + after})
            return messages
    return messages


def caller_texts(messages: Sequence[Message]) -> list[str]:
    """The contents of the messages that are no system messages."""
    return [text for text in caller_contents(messages, system_messages=False) if text is not None]


def caller_contents(messages: Sequence[Message], system_messages: bool) -> tuple[str | None, ...]:
    """The contents of the messages by index; None for system messages, unless ``system_messages``."""
    return tuple(
        None if message.role in _SYSTEM and not system_messages else _text(message) for message in messages
    )


def system_texts(messages: Sequence[Message]) -> list[str]:
    """The contents of the system messages."""
    return [_text(message) for message in messages if message.role in _SYSTEM]


def _text(message: Message) -> str:
    content = message.content
    if isinstance(content, list):
        return "".join(str(part["text"]) for part in content if isinstance(part.get("text"), str))
    return content or ""
