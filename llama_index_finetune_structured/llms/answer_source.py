"""The texts of one call's messages: what grounded values are copied from, and where all values stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage

from ..example import json_span, loads
from ..formats.wire import message_of
from ..local.schema.grounding import GroundedSchema, Grounding, grounded_leaves
from ..local.schema.message_texts import caller_texts
from ..stated_rules import answer_problems
from ..trust.answer_trust import Trust
from ..trust.evidence import with_evidence

if TYPE_CHECKING:
    from ..local.generate.prompt_texts import PromptTexts

__all__ = ["AnswerSource"]


@dataclass(frozen=True)
class AnswerSource:
    """The messages of a call as the source of its answer's values.

    ``contents``: ``ChatMessage.content`` of the messages by index; None for instructions. ``texts``: what the grammar
    lets grounded values copy; None: no value is grounded. ``schema``: of the answer, where its problems are wanted.
    """

    contents: tuple[str | None, ...]
    texts: PromptTexts | None
    schema: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls,
        messages: Sequence[ChatMessage],
        grounded: GroundedSchema | None,
        schema: Mapping[str, Any] | None = None,
    ) -> AnswerSource:
        """The source that messages are for answers to a schema; ``grounded`` None: without grounded values."""
        wired = [message_of(message, text_only=True) for message in messages]
        if grounded is not None and grounded.system_messages:
            wired = [message.model_copy(update={"role": "user"}) for message in wired]
        texts = [caller_texts([message]) for message in wired]
        contents = tuple(
            message.content if text else None for message, text in zip(messages, texts, strict=True)
        )
        if grounded is None:
            return cls(contents, None, schema)
        from ..local.generate.prompt_texts import PromptTexts

        copied = PromptTexts(Grounding(grounded, tuple(text for [text] in filter(None, texts))))
        return cls(contents, copied, schema)

    def evidence(self, trust: Trust, answer: str) -> Trust:
        """The trust in an answer, with where its values stand. ``answer``: its text, which has JSON."""
        if self.texts is None:
            return with_evidence(trust, self.contents)
        leaves = grounded_leaves(self.texts.schema.answer, loads(json_span(answer)))
        return with_evidence(trust, self.contents, {leaf.path for leaf, _ in leaves})

    def problems(self, answer: str) -> tuple[str, ...]:
        """Those that are known by the schema. ``answer``: its text, which has JSON."""
        return answer_problems(self.schema, loads(json_span(answer)), self.contents)
