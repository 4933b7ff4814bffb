"""An agent's turn, a JSON list of texts and calls, as it is generated: pieces of text and of the calls' arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

__all__ = ["TurnPiece", "TurnReader"]

_HIGH = "[dD][89abAB][0-9a-fA-F]{2}"  # half of a character that has its other half in the next escape
_ESCAPE = re.compile(rf"\\(?:u{_HIGH}\\u[0-9a-fA-F]{{4}}|u(?!{_HIGH})[0-9a-fA-F]{{4}}|[^u])")
_LONGEST_ESCAPE = len(r"\ud83d\ude00")


@dataclass
class TurnPiece:
    """What is next in a turn: text, or of the call number ``call`` its name, or more of its arguments' JSON."""

    text: str = ""
    call: int | None = None
    name: str | None = None
    arguments: str = ""


class TurnReader:
    """Reads a turn character by character. Arguments are the model's own text, not read and written again.

    ``calls``: how many have begun. ``is_turn``: whether the text begins as a turn does; else none of it is read.
    """

    def __init__(self, tool: str | None = None) -> None:
        """``tool``: the answer is not a turn but the arguments of one call, of this tool."""
        self.calls, self.is_turn = 0, False
        self._state: Callable[[str], TurnPiece | None] = self._before_turn
        self._raw = ""  # of an unfinished escape, or a name
        self._depth, self._in_string, self._escaped = 0, False, False
        self._named = tool
        if tool is not None:
            self._state = self._before_arguments

    def read(self, text: str) -> Iterator[TurnPiece]:
        """The pieces that more of the answer's text adds."""
        last: TurnPiece | None = None
        for character in text:
            piece = self._state(character)
            if piece is None:
                continue
            if last is None or piece.name is not None or piece.call != last.call:
                if last is not None:
                    yield last
                last = piece
            else:
                last.text += piece.text
                last.arguments += piece.arguments
        if last is not None:
            yield last

    def _before_turn(self, character: str) -> None:
        self.is_turn = character == "["
        if not character.isspace():
            self._state = self._between if self.is_turn else lambda _: None

    def _between(self, character: str) -> None:
        """Outside texts and calls: brackets, commas, white space."""
        if character == '"':
            self._state = self._in_text
        elif character == "{":
            self._state = self._before_name

    def _in_text(self, character: str) -> TurnPiece | None:
        if self._raw:
            self._raw += character
            return self._unescaped()
        if character == '"':
            self._state = self._between
        elif character == "\\":
            self._raw = character
        else:
            return TurnPiece(character)
        return None

    def _unescaped(self) -> TurnPiece | None:
        escape = self._raw
        if _ESCAPE.fullmatch(escape):
            self._raw = ""
            return TurnPiece(json.loads(f'"{escape}"').encode("utf-8", "replace").decode())
        if len(escape) < _LONGEST_ESCAPE:
            return None
        self._raw = ""
        return TurnPiece("\N{REPLACEMENT CHARACTER}")

    def _before_name(self, character: str) -> None:
        if character == '"':
            self._raw, self._state = character, self._in_name

    def _in_name(self, character: str) -> None:
        self._raw += character
        if character == '"' and not self._escaped:
            self._named, self._raw, self._state = json.loads(self._raw), "", self._before_arguments
        self._escaped = character == "\\" and not self._escaped

    def _before_arguments(self, character: str) -> TurnPiece | None:
        if character != "{":
            return None
        self._state, self._depth, self.is_turn = self._in_arguments, 1, True
        self.calls += 1
        return TurnPiece(call=self.calls - 1, name=self._named, arguments=character)

    def _in_arguments(self, character: str) -> TurnPiece:
        if self._in_string:
            self._in_string = character != '"' or self._escaped
            self._escaped = character == "\\" and not self._escaped
        elif character == '"':
            self._in_string = True
        else:
            self._depth += (character in "{[") - (character in "}]")
            if not self._depth:
                self._state = self._after_arguments
        return TurnPiece(call=self.calls - 1, arguments=character)

    def _after_arguments(self, character: str) -> None:
        if character == "}":
            self._state = self._between
