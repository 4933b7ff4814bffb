"""Rules on the JSON text of an answer that a grammar cannot express: finite numbers, no repeated list items."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import dataclass, field

from ..schema.spelling import LONGEST_NUMBER

__all__ = ["JsonText"]

_NUMBER_START = frozenset("-0123456789")
_NUMBER_CHARACTERS = _NUMBER_START | frozenset("+.eE")
# Part of every number with more than 40 characters, or too large for a float.
_LONG_OR_LARGE = re.compile(r"[-+.0-9]{20}|[0-9][eE][-+]?[0-9]{2}")


class JsonText:
    """A growing compact JSON text.

    It adds to a grammar that no number overflows (``1e999``) or has more than 40 characters, and, where ``distinct``,
    that no list continues after an object that it held already: small models tend to repeat one until the token limit.
    """

    def __init__(self, *, distinct: bool = False) -> None:
        self._items = _ListItems() if distinct else None
        self.in_string = False
        self._escaped = False
        self._number = ""

    @property
    def in_number(self) -> bool:
        """Whether the text ends inside a number, which the next character may continue."""
        return bool(self._number)

    @property
    def repeats(self) -> bool:
        """Whether the text ends with an object that its list held already."""
        return self._items is not None and self._items.repeated

    @classmethod
    def has_rules_for(cls, text: str, *, distinct: bool) -> bool:
        """Whether a rule may refuse a part of the text: it has long or large numbers, or objects in a list."""
        return _LONG_OR_LARGE.search(text) is not None or (distinct and "},{" in text)

    def allows(self, text: str) -> bool:
        """Whether ``text`` may come next, by the rules above."""
        return self._allows_number(text) and self._allows_items(text)

    def _allows_items(self, text: str) -> bool:
        # Called for every candidate token of a mask, so what cannot continue a list after an object is allowed without
        # walking through it. To continue one, a token needs a comma; an object that ends before this comma, either
        # here ("}") or already at the end of the text (repeats); and, inside a string, the quote that ends it.
        continues_list = "," in text and (self.repeats or "}" in text) and (not self.in_string or '"' in text)
        if self._items is None or not continues_list:
            return True
        ahead = copy.copy(self)
        ahead._items = self._items.copy()
        for character in text:
            # Directly after an object that repeats one of its list, a comma can only continue that list.
            if character == "," and ahead.repeats:
                return False
            ahead._append(character)
        return True

    def _allows_number(self, text: str) -> bool:
        number = "" if self.in_string else self._number
        for character in text if number else "":
            longer = _continued(number, character)
            if not longer:
                return True  # a number that begins later in the same token is too short to be wrong
            # The limit holds after a digit only: after "e", "." or a sign a number cannot end yet.
            if _is_infinite(longer) or (len(longer) > LONGEST_NUMBER and number[-1].isdigit()):
                return False
            number = longer
        return True

    def append(self, text: str) -> None:
        """Append to the text."""
        for character in text:
            self._append(character)

    def _append(self, character: str) -> None:
        if self._items is not None:
            self._items.append(character, in_string=self.in_string)
        if self._escaped:
            self._escaped = False
        elif self.in_string and character == "\\":
            self._escaped = True
        elif character == '"':
            self.in_string = not self.in_string
        self._number = "" if self.in_string else _continued(self._number, character)


def _continued(number: str, character: str) -> str:
    """A number's text with one more character; empty where that character is no part of a number."""
    return number + character if character in (_NUMBER_CHARACTERS if number else _NUMBER_START) else ""


def _is_infinite(number: str) -> bool:
    try:
        return math.isinf(float(number))
    except ValueError:  # not yet a number: "-", "1e", "1e+"
        return False


@dataclass
class _Open:
    """A list that has not ended, with the text of its objects, or such an object; ``start``: where it begins."""

    start: int = 0
    is_list: bool = False
    items: set[str] = field(default_factory=set)

    def copy(self) -> _Open:
        return _Open(self.start, self.is_list, set(self.items))


class _ListItems:
    """Objects in the lists of a growing compact JSON text, compared as text.

    ``repeated``: the text ends with an object that its list held already.
    """

    def __init__(self) -> None:
        self.repeated = False
        self._text: list[str] = []
        self._open: list[_Open] = []

    def copy(self) -> _ListItems:
        other = _ListItems()
        other.repeated, other._text = self.repeated, [*self._text]
        other._open = [level.copy() for level in self._open]
        return other

    def append(self, character: str, *, in_string: bool) -> None:
        """Append the next character; ``in_string``: it stands in a string."""
        self.repeated = False
        self._text.append(character)
        if in_string or character not in "[]{}":
            return
        if character in "[{":
            self._open.append(_Open(len(self._text) - 1, character == "["))
        elif self._open:
            self._close(self._open.pop())

    def _close(self, ended: _Open) -> None:
        if ended.is_list or not self._open or not self._open[-1].is_list:
            return
        item, held = "".join(self._text[ended.start :]), self._open[-1].items
        self.repeated = item in held
        held.add(item)
