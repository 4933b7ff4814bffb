"""The texts that the values of one call's answer are copied from, and where they stand in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage

from ..example import loads
from ..formats.wire import message_of
from ..local.schema.grounding import GroundedSchema, Grounding
from ..local.schema.message_texts import caller_texts

if TYPE_CHECKING:
    from ..local.generate.grounding import PromptTexts

__all__ = ["AnswerSource"]


@dataclass(frozen=True)
class AnswerSource:
    """The messages of a call as the source of grounded values.

    ``texts``: what the grammar lets the values copy. ``contents``: ``ChatMessage.content`` of the messages by index;
    None for instructions.
    """

    texts: PromptTexts
    contents: tuple[str | None, ...]

    @classmethod
    def of(cls, messages: Sequence[ChatMessage], schema: GroundedSchema) -> AnswerSource:
        """The source that messages are for answers to a schema."""
        from ..local.generate.grounding import PromptTexts

        wired = [message_of(message, text_only=True) for message in messages]
        if schema.system_messages:
            wired = [message.model_copy(update={"role": "user"}) for message in wired]
        texts = [caller_texts([message]) for message in wired]
        contents = (message.content if text else None for message, text in zip(messages, texts, strict=True))
        return cls(
            PromptTexts(Grounding(schema, tuple(text for [text] in filter(None, texts)))), tuple(contents)
        )

    def evidence(self, answer: str) -> list[dict[str, Any]]:
        """As ``evidence_of``, for an answer's text; empty where it is no JSON, as one that was cut."""
        from ..local.generate.evidence import evidence_of

        try:
            value = loads(answer)
        except ValueError:
            return []
        return evidence_of(value, self.texts.schema, self.contents)
