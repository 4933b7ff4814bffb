"""How far the JSON text of an answer is: in a string, in a number that must stay finite, past a list's item."""

from __future__ import annotations

import copy
import math

from .list_items import ListItems

__all__ = ["JsonText"]

_BEGINS_NUMBER = frozenset("-0123456789")
_IN_NUMBER = _BEGINS_NUMBER | frozenset("+.eE")
_LONGEST_NUMBER = 40


class JsonText:
    """A growing JSON text. What it adds to a grammar: no number overflows (``1e999``) or goes on for ever.

    ``distinct``: and no list goes on after an object that it held already.
    """

    def __init__(self, *, distinct: bool = False) -> None:
        self._items = ListItems() if distinct else None
        self.in_string = False
        self._escaped = False
        self._number = ""

    @property
    def in_number(self) -> bool:
        return bool(self._number)

    @property
    def repeats(self) -> bool:
        """Whether it ends with an object that its list held already."""
        return self._items is not None and self._items.repeated

    def takes(self, text: str) -> bool:
        """Whether by this text no number becomes infinite or overlong, and no list goes on after a repetition."""
        return self._takes_number(text) and self._takes_items(text)

    def _takes_items(self, text: str) -> bool:
        may_go_on = "," in text and (self.repeats or "}" in text) and (not self.in_string or '"' in text)
        if self._items is None or not may_go_on:
            return True
        ahead = copy.copy(self)
        ahead._items = self._items.copy()
        for character in text:
            if character == "," and ahead.repeats:
                return False
            ahead._see(character)
        return True

    def _takes_number(self, text: str) -> bool:
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
        if self._items is not None:
            self._items.see(character, in_string=self.in_string)
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
