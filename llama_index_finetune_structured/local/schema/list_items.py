"""Rules for lists that are read from a text window by window, learned from training answers.

For answers that are nothing but lists, such as ``{"citations": [...]}`` or a list itself. The rules say where the text
stands in the last user message, and when two windows list the same item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from ...example import Example, canonical_json

__all__ = ["ItemList", "ListRules", "Span", "TextFrame"]

Span = tuple[int, int]
"""Start and end of a part of a text, in characters."""


class TextFrame(BaseModel):
    """Where a prompt's text stands in the last user message: constant parts around it, empty where there are none.

    Attributes:
        start: Every message begins with it.
        lead: The text begins right after its first occurrence. Empty: right after ``start``.
        tail: The text ends right before its last occurrence. Empty: right before ``end``.
        end: Every message ends with it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: str = ""
    lead: str = ""
    tail: str = ""
    end: str = ""

    def split(self, message_text: str) -> tuple[str, str, str] | None:
        """What stands before the text, the text, and what follows it; None for a message of another form.

        Args:
            message_text: The content of the message.
        """
        if not message_text.startswith(self.start):
            return None
        first = len(self.start)
        if self.lead:
            found = message_text.find(self.lead, first)
            if found < 0:
                return None
            first = found + len(self.lead)
        if not message_text.endswith(self.end):
            return None
        last = len(message_text) - len(self.end)
        if self.tail:
            last = message_text.rfind(self.tail, first, last)
        if last < first:
            return None
        return message_text[:first], message_text[first:last], message_text[last:]


class ItemList(BaseModel):
    """A list of the answer.

    Attributes:
        name: Property of the answer that holds it. None: the answer is the list.
        key: Fields of an item that no training answer has twice in one list. None: items are compared whole.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = None
    key: tuple[str, ...] | None = None

    def items(self, answer: Any) -> list[Any]:
        """The items in an answer; none where it has no such list.

        Args:
            answer: An answer, parsed.
        """
        found = answer if self.name is None else answer.get(self.name) if isinstance(answer, dict) else None
        return found if isinstance(found, list) else []

    def identity(self, item: Any) -> str:
        """Text that is the same for two items where they are one.

        Args:
            item: An item of the list.
        """
        if self.key is None or not isinstance(item, dict):
            return canonical_json(item)
        return canonical_json([item.get(field) for field in self.key])

    def joined(self, answers: Sequence[Any]) -> list[Any]:
        """The items of several answers, each once, the first of equal ones.

        Args:
            answers: Parsed answers, in order.
        """
        first: dict[str, Any] = {}
        for answer in answers:
            for item in self.items(answer):
                first.setdefault(self.identity(item), item)
        return list(first.values())


class ListRules(BaseModel):
    """How answers to one schema are read window by window.

    Attributes:
        frame: Where the text stands in the last user message.
        lists: The lists that an answer consists of.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    frame: TextFrame
    lists: tuple[ItemList, ...]

    @classmethod
    def learn(cls, examples: Iterable[Example]) -> ListRules | None:
        """Learn the rules from examples of one schema; None where their answers are not lists of parts of a text.

        Args:
            examples: Training examples. Those without a schema are passed over.
        """
        raise NotImplementedError

    def windows(self, message_text: str, cut: Callable[[str], Sequence[Span]]) -> list[str] | None:
        """The content of the last user message for each window; None where it cannot be cut.

        Args:
            message_text: The content of the last user message.
            cut: Gives the windows of a text, such as ``text_windows`` with a number of sentences.
        """
        parts = self.frame.split(message_text)
        if parts is None:
            return None
        before, text, after = parts
        spans = cut(text)
        return [before + text[first:last] + after for first, last in spans] if spans else None

    def merged(self, answers: Sequence[Any]) -> Any:
        """One answer from those to the windows: their lists joined in order, each item once.

        Args:
            answers: The parsed answers, in the order of the windows.
        """
        lists = {part.name: part.joined(answers) for part in self.lists}
        return lists.get(None, lists)
