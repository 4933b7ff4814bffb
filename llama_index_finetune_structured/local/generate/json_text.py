"""Rules on the JSON text of an answer that a grammar cannot express: finite numbers, no key or list item twice."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import dataclass, field

from ..schema.spelling import LONGEST_NUMBER
from ..schema.text_order import FreeKeys

__all__ = ["JsonText", "TextRules"]

_NUMBER_START = frozenset("-0123456789")
_NUMBER_CHARACTERS = _NUMBER_START | frozenset("+.eE")
# Part of every number with more than 40 characters, or too large for a float.
_LONG_OR_LARGE = re.compile(r"[-+.0-9]{20}|[0-9][eE][-+]?[0-9]{2}")


@dataclass(frozen=True)
class TextRules:
    """What is asked of the text beside finite numbers.

    ``distinct``: no list continues after an object that it held already, for small models tend to repeat one until
    the token limit. ``free_keys``: the keys of objects that may have some in any order, each once.
    """

    distinct: bool = False
    free_keys: FreeKeys = ()

    @property
    def on_commas(self) -> bool:
        """Whether a rule may refuse a comma after a value."""
        return self.distinct or bool(self.free_keys)

    def concern(self, text: str) -> bool:
        """Whether a rule may refuse a part of the text: it has long or large numbers, objects in a list, or keys."""
        return (
            _LONG_OR_LARGE.search(text) is not None
            or (self.distinct and "},{" in text)
            or (bool(self.free_keys) and ',"' in text)
        )


class JsonText:
    """A growing compact JSON text.

    It adds to a grammar that no number overflows (``1e999``) or has more than 40 characters, and the ``rules``.
    """

    def __init__(self, rules: TextRules = TextRules()) -> None:
        self._items = _ListItems() if rules.distinct else None
        self._keys = _ObjectKeys(rules.free_keys) if rules.free_keys else None
        self.in_string = False
        self._escaped = False
        self._number = ""

    @property
    def in_number(self) -> bool:
        """Whether the text ends inside a number, which the next character may continue."""
        return bool(self._number)

    @property
    def in_key(self) -> bool:
        """Whether a key comes next or has begun, of an object that is concerned by the rules."""
        return self._keys is not None and self._keys.in_key

    @property
    def repeats(self) -> bool:
        """Whether the text ends with an object that its list held already."""
        return self._items is not None and self._items.repeated

    def allows(self, text: str) -> bool:
        """Whether ``text`` may come next, by the rules above."""
        return self._allows_number(text) and self._allows_structure(text)

    def _allows_structure(self, text: str) -> bool:
        if not self._may_repeat_item(text) and not self._may_repeat_key(text):
            return True
        ahead = copy.copy(self)
        ahead._items = self._items and self._items.copy()
        ahead._keys = self._keys and self._keys.copy()
        for character in text:
            # Directly after an object that repeats one of its list, a comma can only continue that list.
            if character == "," and ahead.repeats:
                return False
            if ahead._keys is not None and not ahead._keys.allows(character, in_string=ahead.in_string):
                return False
            ahead._append(character)
        return True

    # Called for every candidate token of a mask, so most are allowed without walking through their text. To continue
    # a list or an object, a token needs a comma and, inside a string, the quote that ends it.

    def _may_repeat_item(self, text: str) -> bool:
        """Whether a list may continue in the text after an object, which ends in it or ended before (repeats)."""
        continues = "," in text and (self.repeats or "}" in text) and (not self.in_string or '"' in text)
        return continues and self._items is not None

    def _may_repeat_key(self, text: str) -> bool:
        continues = "," in text and (not self.in_string or '"' in text)
        return self._keys is not None and (continues or self._keys.in_key)

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
        if self._keys is not None:
            self._keys.append(character, in_string=self.in_string, escaped=self._escaped)
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


class _ObjectKeys:
    """The keys of the open objects of a growing compact JSON text.

    ``objects``: the keys of each object that may have some in any order. Which of them an open object is, the keys
    that it has tell: all that name these. One that none of them names is another object, about which nothing is known.
    """

    def __init__(self, objects: FreeKeys) -> None:
        self._objects = objects
        self._open: list[frozenset[str] | None] = []  # None: a list
        self._key: str | None = None  # as far as it is written
        self._expects_key = False

    def copy(self) -> _ObjectKeys:
        other = copy.copy(self)
        other._open = [*self._open]
        return other

    @property
    def in_key(self) -> bool:
        return self._key is not None or self._expects_key

    def allows(self, character: str, *, in_string: bool) -> bool:
        """Whether the character may come next; ``in_string``: it stands in a string."""
        used = self._open[-1] if self._open else None
        if used is None or not used:
            return True
        possible = [keys for keys in self._objects if used <= keys]
        if not possible:
            return True
        if character == "," and not in_string:
            return any(keys > used for keys in possible)
        if self._key is None or not in_string:
            return True
        if character == '"':
            return self._key not in used
        key = self._key + character
        taken = any(name.startswith(key) for name in used)
        return not taken or any(name.startswith(key) for keys in possible for name in keys - used)

    def append(self, character: str, *, in_string: bool, escaped: bool) -> None:
        """Append the next character; ``in_string``: it stands in a string; ``escaped``: after a backslash there."""
        if in_string:
            if self._key is None:
                return
            if character != '"' or escaped:
                self._key += character
                return
            self._open[-1] = (self._open[-1] or frozenset()) | {self._key}
            self._key = None
        elif character == '"':
            self._key = "" if self._expects_key else None
            self._expects_key = False
        elif character in "[{":
            self._open.append(frozenset() if character == "{" else None)
            self._expects_key = character == "{"
        elif character in "]}":
            self._open.pop()
            self._expects_key = False
        elif character == ",":
            self._expects_key = bool(self._open) and self._open[-1] is not None
