"""Reasoning before an answer: the marks around it, as the base model's chat template writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

from ...errors import DatasetError
from .chat_template import chat_template, render_parts
from .control_tokens import control_tokens, encode_parts

__all__ = ["ReasoningMarks", "Thinking", "reasoning_marks", "without_mark"]

Thinking = Literal["keep", "drop"]
"""Whether the reasoning of training answers is trained."""

_BEGIN, _END = "<think>", "</think>"
_OPENING, _CLOSING = f"{_BEGIN}\n", f"\n{_END}\n\n"
_QUESTION, _REASON, _ANSWER = "Question 71?", "Reason 72.", "Answer 73."  # texts that no template changes

_marks: WeakKeyDictionary[Any, tuple[str, ReasoningMarks]] = WeakKeyDictionary()


@dataclass(frozen=True)
class ReasoningMarks:
    """What stands around the reasoning of an answer.

    ``opening``: what an answer begins with; empty where the prompt ends with it. ``closing``: what stands between
    reasoning and answer. ``is_template``: whether the chat template writes these marks, so that control tokens in them
    are control tokens; else they are text.
    """

    opening: str
    closing: str
    is_template: bool

    @property
    def mark(self) -> str:
        """The text that ends the reasoning, without white space."""
        return self.closing.strip()

    def mark_id(self, tokenizer: Any) -> int | None:
        """The control token that the mark begins with; None: the mark is text."""
        first = self.ids(tokenizer, self.mark)[0]
        return first if first in control_tokens(tokenizer) else None

    def ids(self, tokenizer: Any, text: str) -> tuple[int, ...]:
        """Token ids of a text of the marks."""
        return tuple(encode_parts(tokenizer, [(text, not self.is_template)])) if text else ()

    def around(self, tokenizer: Any, reasoning: str | None) -> tuple[int, ...]:
        """Token ids of an answer's reasoning with its marks; those of an empty one for None.

        Raises DatasetError for reasoning with the text of the mark that ends it.
        """
        text = (reasoning or "").strip()
        if self.mark in text:
            raise DatasetError(
                f"its reasoning has the text {self.mark!r}, which ends reasoning: remove it, or train with "
                "thinking='drop'"
            )
        closed = encode_parts(tokenizer, [(text, True), (self.closing, not self.is_template)])
        return (*self.ids(tokenizer, self.opening), *closed)


def reasoning_marks(tokenizer: Any) -> ReasoningMarks:
    """The marks of a base model: those that its chat template writes, else ``<think>`` and ``</think>`` as text.

    Raises DatasetError where the chat template ends the reasoning in the prompt, or the tokenizer has no such text.
    """
    template = chat_template(tokenizer)
    known = _marks.get(tokenizer)
    if known is None or known[0] != template:
        known = _marks[tokenizer] = (template, _marks_of(tokenizer, template))
    return known[1]


def without_mark(text: str, mark: str) -> str:
    """The reasoning in a text that a model wrote before its answer; its end may still be missing."""
    reasoning, ended, _ = text.partition(mark)
    if not ended:
        held_back = range(min(len(mark) - 1, len(text)), 0, -1)
        cut = next((n for n in held_back if mark.startswith(text[-n:])), 0)
        reasoning = text[: len(text) - cut]
    return reasoning.strip().rstrip("\N{REPLACEMENT CHARACTER}")


def _marks_of(tokenizer: Any, template: str) -> ReasoningMarks:
    asked: Mapping[str, Any] = {"role": "user", "content": _QUESTION}
    prompt = _text(tokenizer, [asked], prompts=True)
    answered = {"role": "assistant", "content": _ANSWER, "reasoning_content": _REASON}
    try:
        row = _text(tokenizer, [asked, answered], prompts=False)
    except DatasetError:  # a template may have no place for an answer
        row = ""
    before, reasoned, after = row.partition(_REASON)
    closing, found, _ = after.partition(_ANSWER)
    if reasoned and found and closing.strip() and before.startswith(prompt):
        return ReasoningMarks(before[len(prompt) :], closing, is_template=True)
    tail = prompt.rpartition(_QUESTION)[2]
    if _END in tail:
        raise DatasetError(
            "the base model's chat template ends the reasoning in the prompt, before an answer, so that none can be "
            "trained: train with thinking='drop', or use another base model"
        )
    _, opened, white = tail.partition(_BEGIN)
    opening = _OPENING.removeprefix(_BEGIN + white) if opened else _OPENING
    marks = ReasoningMarks(opening, _CLOSING, is_template=_END in template)
    if marks.mark_id(tokenizer) is None and _END not in tokenizer.decode(marks.ids(tokenizer, _CLOSING)):
        raise DatasetError(
            f"the base model's tokenizer cannot write {_END!r}, which ends reasoning: train with thinking='drop', or "
            "use another base model"
        )
    return marks


def _text(tokenizer: Any, messages: list[Mapping[str, Any]], *, prompts: bool) -> str:
    parts = render_parts(tokenizer, messages, add_generation_prompt=prompts, thinking=True)
    return "".join(text for text, _ in parts)
