"""The texts of one call's messages: what grounded values are copied from, and where all values stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage

from ..example import json_span, loads
from ..formats.wire import message_of
from ..local.schema.grounding import GroundedSchema, Grounding, grounded_leaves
from ..local.schema.message_texts import caller_contents
from ..stated_rules import answer_problems
from ..trust.answer_trust import Trust
from ..trust.evidence import with_evidence
from ..trust.tagger import WordTagger

if TYPE_CHECKING:
    from ..local.generate.prompt_texts import PromptTexts

__all__ = ["AnswerSource", "placed_trust"]


@dataclass(frozen=True)
class AnswerSource:
    """The messages of a call as the source of its answer's values.

    ``contents``: ``ChatMessage.content`` of the messages by index; None for instructions. ``texts``: what the grammar
    lets grounded values copy; None: no value is grounded. ``schema``: of the answer, where its problems are wanted.
    ``tagger``: of the words; None: there is none.
    """

    contents: tuple[str | None, ...]
    texts: PromptTexts | None
    schema: Mapping[str, Any] | None = None
    tagger: WordTagger | None = None

    @classmethod
    def of(
        cls,
        messages: Sequence[ChatMessage],
        grounded: GroundedSchema | None,
        schema: Mapping[str, Any] | None = None,
        tagger: WordTagger | None = None,
    ) -> AnswerSource:
        """The source that messages are for answers to a schema; ``grounded`` None: without grounded values."""
        wired = [message_of(message, text_only=True) for message in messages]
        texts = caller_contents(wired, grounded is not None and grounded.system_messages)
        contents = tuple(
            None if text is None else message.content for message, text in zip(messages, texts, strict=True)
        )
        if grounded is None:
            return cls(contents, None, schema, tagger)
        from ..local.generate.prompt_texts import PromptTexts

        copied = PromptTexts(Grounding(grounded, tuple(text for text in texts if text is not None)))
        return cls(contents, copied, schema, tagger)

    def evidence(self, trust: Trust, answer: str) -> Trust:
        """The trust in an answer, with where its values stand, and what the tagger says of them.

        ``answer``: its text, which has JSON.
        """
        schema = None if self.texts is None else self.texts.schema
        placed = placed_trust(trust, self.contents, schema, loads(json_span(answer)))
        return placed if self.tagger is None else self.tagger.applied(placed, self.contents)

    def problems(self, answer: str) -> tuple[str, ...]:
        """Those that are known by the schema. ``answer``: its text, which has JSON."""
        return answer_problems(self.schema, loads(json_span(answer)), self.contents)


def placed_trust(
    trust: Trust, contents: Sequence[str | None], grounded: GroundedSchema | None, answer: Any
) -> Trust:
    """The trust in an answer, with where its values stand.

    ``contents``: as of ``with_evidence``. ``grounded``: which values are copied; None: none is. ``answer``: parsed.
    """
    if grounded is None:
        return with_evidence(trust, contents)
    leaves = grounded_leaves(grounded.answer, answer)
    return with_evidence(trust, contents, {leaf.path for leaf, _ in leaves})
