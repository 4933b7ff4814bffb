"""How far the JSON text of an answer is: inside a string, or inside a number that must stay finite."""

from __future__ import annotations

import math

__all__ = ["JsonText"]

_BEGINS_NUMBER = frozenset("-0123456789")
_IN_NUMBER = _BEGINS_NUMBER | frozenset("+.eE")
_LONGEST_NUMBER = 40


class JsonText:
    """A growing JSON text. What it adds to a grammar: no number overflows (``1e999``) or goes on for ever."""

    def __init__(self) -> None:
        self.in_string = False
        self._escaped = False
        self._number = ""

    @property
    def in_number(self) -> bool:
        return bool(self._number)

    def takes(self, text: str) -> bool:
        """Whether no number becomes infinite or overlong by this text."""
        number = "" if self.in_string else self._number
        for character in text if number else "":
            longer = _longer(number, character)
            if not longer:
                return True  # a number that begins after this one is too short to be wrong
            if _is_infinite(longer) or (len(longer) > _LONGEST_NUMBER and number[-1].isdigit()):
                return False
            number = longer
        return True

    def add(self, text: str) -> None:
        for character in text:
            self._see(character)

    def _see(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif self.in_string and character == "\\":
            self._escaped = True
        elif character == '"':
            self.in_string = not self.in_string
        self._number = "" if self.in_string else _longer(self._number, character)


def _longer(number: str, character: str) -> str:
    """A number's text with one more character; empty where that character is no part of a number."""
    return number + character if character in (_IN_NUMBER if number else _BEGINS_NUMBER) else ""


def _is_infinite(number: str) -> bool:
    try:
        return math.isinf(float(number))
    except ValueError:  # not yet a number: "-", "1e", "1e+"
        return False
