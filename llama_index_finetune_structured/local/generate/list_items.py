"""The objects in the lists of a growing compact JSON text: small models like to say the same one for ever."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["ListItems"]


@dataclass
class _Open:
    """An open list with the objects that it holds, or an open object with the place where it began."""

    start: int = 0
    is_list: bool = False
    items: set[str] = field(default_factory=set)

    def copy(self) -> _Open:
        return _Open(self.start, self.is_list, set(self.items))


class ListItems:
    """``repeated``: the text ends with an object that its list held already."""

    def __init__(self) -> None:
        self.repeated = False
        self._text: list[str] = []
        self._open: list[_Open] = []

    def copy(self) -> ListItems:
        other = ListItems()
        other.repeated, other._text = self.repeated, [*self._text]
        other._open = [level.copy() for level in self._open]
        return other

    def see(self, character: str, *, in_string: bool) -> None:
        """The next character, and whether it stands in a string."""
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
