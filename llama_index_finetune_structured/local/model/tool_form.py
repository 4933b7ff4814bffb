"""Turns with tool calls as a base model's own chat template writes them, and how they are read.

Many bases learned such a form in pre-training: Hermes and Qwen write ``<tool_call>`` blocks with a JSON object each,
Mistral a JSON list after a control token. A form is the texts around each name and each JSON of arguments, so that one
description covers blocks and lists.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from ..schema.turn_tools import Call
from .control_tokens import Part

__all__ = ["ToolForm"]


@dataclass(frozen=True)
class ToolForm:
    """How turns with tool calls are written.

    ``opening``: from the beginning of a turn to the first name; ``after_text``: the same where a text stands before
    it. ``between``: from a name to the arguments. ``separator``: from arguments to the next name. ``closing``: from
    the last arguments to the end. ``separators``: of items and of keys in the arguments' JSON. ``mark``: what ends a
    text and begins the calls. All are text of the template, in which control tokens are control tokens.
    """

    opening: str
    after_text: str
    between: str
    separator: str
    closing: str
    separators: tuple[str, str]
    mark: str

    @property
    def lead(self) -> str:
        """What stands between a text and the mark."""
        return self.after_text[: self.after_text.index(self.mark)]

    @property
    def indent(self) -> str:
        """What stands before the mark where there is no text."""
        return self.opening[: self.opening.index(self.mark)]

    @property
    def begun(self) -> str:
        """From behind the mark to the first name."""
        return self.opening[len(self.indent) + len(self.mark) :]

    def parts(self, text: str, calls: Sequence[Call]) -> list[Part]:
        """A turn as the template writes it, up to its stop token."""
        parts: list[Part] = [(text, True)]
        for number, (name, arguments) in enumerate(calls):
            before = self.separator if number else self.after_text if text else self.opening
            spelled = json.dumps(arguments, ensure_ascii=False, separators=self.separators)
            parts += [(before, False), (name, True), (self.between, False), (spelled, True)]
        return [part for part in [*parts, (self.closing if calls else "", False)] if part[0]]

    def as_json(self, written: str, names: Sequence[str], *, is_whole: bool = True) -> list[str] | None:
        """What each character of a turn is in the turn's JSON text, and at last what its end is.

        Where several characters are one text of the JSON, the first has it. None for a turn in another form. Not
        ``is_whole``: of the beginning of a turn, whose JSON then may begin only.
        """
        return _Reading(self, written, names, is_whole).json


class _Reading:
    """One turn, read from its start. ``json``: as of ``ToolForm.as_json``."""

    def __init__(self, form: ToolForm, written: str, names: Sequence[str], is_whole: bool) -> None:
        self._form, self._written, self._is_whole = form, written, is_whole
        self._names = sorted(names, key=len, reverse=True)
        found = [""] * (len(written) + 1)
        self._json = found
        self.json = found if self._read() or not is_whole else None

    def _read(self) -> bool:
        form, written = self._form, self._written
        text, mark, _ = written.partition(form.mark)
        if not mark:
            return self._read_text(self._shown(text), self._is_whole)
        text = "" if text == form.indent else text.removesuffix(form.lead)
        at = len(text) + written[len(text) :].index(form.mark)
        if text:
            self._read_text(text, False)
            self._json[len(text)] += '"'
        self._json[at] += "," if text else "["
        at += len(form.mark)
        return written.startswith(form.begun, at) and self._read_calls(at + len(form.begun))

    def _shown(self, text: str) -> str:
        """The text, without an end of it that may be the beginning of calls where it is not whole."""
        form = self._form
        if self._is_whole:
            return text
        if (form.indent + form.mark).startswith(text):
            return ""
        begun = form.lead + form.mark
        ends = (begun[:size] for size in range(len(begun), 0, -1))
        return next((text[: -len(end)] for end in ends if text.endswith(end)), text)

    def _read_text(self, text: str, ends: bool) -> bool:
        for place, character in enumerate(text):
            self._json[place] = json.dumps(character, ensure_ascii=False)[1:-1]
        if text or ends:
            self._json[0] = '["' + self._json[0]
        if ends:
            self._json[-1] += '"]'
        return True

    def _read_calls(self, at: int) -> bool:
        """Read calls from the first name on."""
        form, written = self._form, self._written
        while True:
            name = next((name for name in self._names if written.startswith(name + form.between, at)), None)
            if name is None:
                return False
            for place, character in enumerate(name, at):
                self._json[place] += json.dumps(character, ensure_ascii=False)[1:-1]
            self._json[at] = '{"' + self._json[at]
            begin = at + len(name + form.between)
            self._json[at + len(name)] += '":'
            end = self._end_of_object(begin)
            self._json[begin:end] = [
                before + character
                for before, character in zip(self._json[begin:end], written[begin:end], strict=True)
            ]
            if end == len(written):
                return False
            self._json[end] += "}"
            if written[end:] == form.closing:
                self._json[-1] += "]"
                return True
            if not written.startswith(form.separator, end):
                return False
            self._json[end] += ","
            at = end + len(form.separator)

    def _end_of_object(self, begin: int) -> int:
        """Where the JSON object that begins there ends; the end of the text where it does not."""
        depth, in_string, escaped = 0, False, False
        for place in range(begin, len(self._written)):
            character = self._written[place]
            if in_string:
                in_string = escaped or character != '"'
                escaped = not escaped and character == "\\"
                continue
            in_string = character == '"'
            depth += (character in "{[") - (character in "]}")
            if depth <= 0:
                return place + 1 if character in "]}" else place
        return len(self._written)
