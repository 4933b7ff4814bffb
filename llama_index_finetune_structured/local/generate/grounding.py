"""Hold grounded values of an answer to the texts of its prompt, while the answer is written token by token.

Texts and values are compared as JSON writes them, as UTF-8: a token may hold a part of a character or of an escape.
A value so far is known by all positions of the texts where it may end. The next byte leaves those that it continues,
so nothing is built from the texts beforehand.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from ..schema.answer_places import LeafKind
from ..schema.grounding import GroundedPlace, GroundedRule, rule_at
from .prompt_texts import SEPARATOR, PromptTexts, VocabularyTree, json_bytes

__all__ = ["GroundedText"]

_QUOTE, _BACKSLASH, _UNICODE = ord('"'), ord("\\"), ord("u")
_SPACE = ord(" ")  # after a comma or colon, where a base model's chat template writes it
_ESCAPE_BEGUN = 5  # more than the digits of \\u that may be missing
_NUMBER_START = frozenset(b"-0123456789")
_NUMBER = _NUMBER_START | frozenset(b"+.eE")
_NUMBER_ALONE = re.compile(rb"[-+.eE0-9]+")
_MOST_COMPARED = 64  # positions whose continuations are compared; chosen: with more they seldom agree


class _Value(NamedTuple):
    """A grounded value that is being written. ``positions``: where it may end in the texts so far."""

    prompt: PromptTexts
    rule: GroundedRule
    kind: LeafKind
    positions: Any
    others: tuple[bytes, ...]  # what is left of the rule's other values that begin so
    length: int = 0  # bytes of the value so far

    @classmethod
    def begun(cls, prompt: PromptTexts, rule: GroundedRule, kind: LeafKind) -> _Value:
        others = tuple(json_bytes(text) if kind == "string" else text.encode() for text in rule.others)
        return cls(prompt, rule, kind, prompt.begins(kind, rule), others)

    def after(self, byte: int) -> _Value | None:
        """The value with one more byte; None where it then stands nowhere."""
        positions = self.positions
        positions = positions[self.prompt.array[positions] == byte] + 1
        length = self.length + 1
        if self.rule.alone:
            positions = positions[positions <= self.prompt.furthest(self.rule.alone)[positions - length]]
        others = tuple(text[1:] for text in self.others if text and text[0] == byte) if self.others else ()
        if not len(positions) and not others:
            return None
        return self._replace(positions=positions, others=others, length=length)

    def may_end(self) -> bool:
        """Whether the value may be complete."""
        if b"" in self.others:
            return True
        return self.length > 0 and self.prompt.may_end(self.kind, self.rule, self.positions, self.length)

    def next_tokens(self, tree: VocabularyTree) -> set[int]:
        """The tokens that continue the value, without those that end it."""
        if not self.length:
            found = self.prompt.first_tokens(self.kind, self.rule, tree)
        else:
            found = tree.starts_of(self._windows(tree.longest))
        found = found | tree.starts_of(self.others) if self.others else found
        if self.kind == "number":  # a comma of the text would be one of the JSON, which ends the number
            return {token for token in found if _NUMBER_ALONE.fullmatch(tree.texts[token])}
        return found

    def continuation(self, size: int) -> tuple[bytes, bool]:
        """Up to ``size`` bytes that follow in the texts wherever the value stands, and whether more may follow."""
        if not self.length or self.others or len(self.positions) > _MOST_COMPARED:
            return b"", False
        windows = self._windows(size)
        first, last = min(windows), max(windows)  # all others begin as both of these do
        differing = (n for n, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
        common = first[: next(differing, min(len(first), len(last)))].split(SEPARATOR)[0]
        return common, len(common) == size or len(windows) > 1

    def _windows(self, size: int) -> set[bytes]:
        return self.prompt.windows(self.rule, self.positions, size, self.length)


class _Open(NamedTuple):
    """An object or list that has not ended."""

    place: GroundedPlace | None
    is_list: bool


class GroundedText:
    """A growing JSON text whose grounded values stand in the texts of the prompt.

    Where a value is forced to go on otherwise, it is free up to its end.
    """

    def __init__(self, prompt: PromptTexts) -> None:
        self._prompt = prompt
        self._open: tuple[_Open, ...] = ()
        self._place: GroundedPlace | None = prompt.schema.answer  # of the value that is written or comes next
        self._in_string = self._in_number = self._is_key = self._expects_key = False
        self._expects_value = True
        self._key = b""
        self._escape = 0  # bytes that an escape still needs
        self._value: _Value | None = None  # the open string or number, where it is grounded

    @property
    def may_end(self) -> bool:
        """Whether no value is open that could not be complete."""
        return self._value is None or self._value.may_end()

    def continuation(self, size: int) -> tuple[bytes, bool]:
        """As of the open value; nothing where none is open."""
        return (b"", False) if self._value is None else self._value.continuation(size)

    def allows(self, text: bytes) -> bool:
        """Whether ``text`` may come next."""
        ahead = copy.copy(self)
        return all(ahead._append(byte) for byte in text)

    def append(self, text: bytes) -> None:
        """Append to the text."""
        for byte in text:
            self._append(byte)

    def allowed_start(self, texts: Iterable[bytes]) -> int:
        """How many of the texts may follow one after the other."""
        ahead, count = copy.copy(self), 0
        for text in texts:
            if not all(ahead._append(byte) for byte in text):
                break
            count += 1
        return count

    def masked(self, allowed: torch.Tensor, tree: VocabularyTree) -> torch.Tensor:
        """Mask out the tokens that would not be grounded, unless none would be left. [vocabulary] -> [vocabulary]"""
        if (value := self._value or self._expected_number()) is None:
            refused = [
                token for token in _true(allowed & tree.openings) if not self.allows(tree.texts[token])
            ]
            if not refused:
                return allowed
            kept = allowed.clone()
            kept[refused] = False
        else:
            kept = torch.zeros_like(allowed)
            inside = sorted(value.next_tokens(tree))
            kept[inside] = allowed[inside]
            kept[list(self._ends(allowed, value.kind, tree))] = True
        return kept if bool(kept.any()) else allowed

    def _ends(self, allowed: torch.Tensor, kind: LeafKind, tree: VocabularyTree) -> Iterator[int]:
        """The allowed tokens that hold more than a part of the value."""
        for token in _true(allowed & tree.quoted if kind == "string" else allowed):
            text = tree.texts[token]
            if (kind == "string" or not _NUMBER_ALONE.fullmatch(text)) and text and self.allows(text):
                yield token

    def _expected_number(self) -> _Value | None:
        """The number that comes next, where numbers and no strings are grounded there."""
        rule = rule_at(self._place, "number") if self._expects_value else None
        return None if rule is None else _Value.begun(self._prompt, rule, "number")

    def _append(self, byte: int) -> bool:
        """Append a byte; returns whether it leaves the values grounded."""
        if self._in_string:
            return self._append_in_string(byte)
        if self._in_number:
            if byte in _NUMBER:
                return self._continue(byte)
            ended = self._end()
            self._append_structure(byte)
            return ended
        if byte in _NUMBER_START:
            self._in_number, self._expects_value = True, False
            rule = rule_at(self._place, "number")
            self._value = None if rule is None else _Value.begun(self._prompt, rule, "number")
            return self._continue(byte)
        self._append_structure(byte)
        return True

    def _append_in_string(self, byte: int) -> bool:
        if self._escape:
            begins = self._escape == _ESCAPE_BEGUN
            self._escape = (4 if byte == _UNICODE else 0) if begins else self._escape - 1
        elif byte == _BACKSLASH:
            self._escape = _ESCAPE_BEGUN
        elif byte == _QUOTE:
            return self._end()
        if self._is_key:
            self._key += bytes([byte])
            return True
        return self._continue(byte)

    def _continue(self, byte: int) -> bool:
        if self._value is None:
            return True
        self._value = self._value.after(byte)
        return self._value is not None

    def _end(self) -> bool:
        complete = self.may_end
        self._in_string = self._in_number = self._is_key = False
        self._value = None
        return complete

    def _append_structure(self, byte: int) -> None:
        if byte == _QUOTE:
            self._begin_string()
        elif byte in b"{[":
            is_list = byte == ord("[")
            self._open = (*self._open, _Open(self._place, is_list))
            self._expects_key, self._expects_value = not is_list, is_list
            self._place = self._place and self._place.items if is_list else None
        elif byte in b"}]":
            self._open, self._place, self._expects_key, self._expects_value = (
                self._open[:-1],
                None,
                False,
                False,
            )
        elif byte == ord(",") and self._open:
            last = self._open[-1]
            self._expects_key, self._expects_value = not last.is_list, last.is_list
            self._place = last.place and last.place.items if last.is_list else None
        elif byte == ord(":"):
            place = self._open[-1].place if self._open else None
            self._place = place and place.inside(json.loads(b'"' + self._key + b'"'))
            self._expects_value = True
        elif byte != _SPACE:  # of true, false and null
            self._expects_value = False

    def _begin_string(self) -> None:
        self._in_string, self._is_key, self._expects_value = True, self._expects_key, False
        if self._expects_key:
            self._expects_key, self._key = False, b""
            return
        rule = rule_at(self._place, "string")
        self._value = None if rule is None else _Value.begun(self._prompt, rule, "string")


def _true(mask: torch.Tensor) -> Sequence[int]:
    found: list[int] = mask.nonzero()[:, 0].tolist()
    return found
