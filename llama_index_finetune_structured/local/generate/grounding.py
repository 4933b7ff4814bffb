"""Hold grounded values of an answer to the texts of its prompt, while the answer is written token by token.

Texts and values are compared as JSON writes them, as UTF-8: a token may hold a part of a character or of an escape.
A value so far is known by all positions of the texts where it may end. The next byte leaves those that it continues,
so nothing is built from the texts beforehand.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy
import torch

from ..schema.grounding import GroundedPlace, GroundedRule, Grounding, LeafKind, number_parts, rule_at
from ..schema.spelling import spelled_json

__all__ = ["GroundedText", "PromptTexts", "VocabularyTree"]

_QUOTE, _BACKSLASH, _UNICODE = ord('"'), ord("\\"), ord("u")
_SPACE = ord(" ")  # after a comma or colon, where a base model's chat template writes it
_ESCAPE_BEGUN = 5  # more than the digits of \\u that may be missing
_NUMBER_START = frozenset(b"-0123456789")
_NUMBER = _NUMBER_START | frozenset(b"+.eE")
_NUMBER_ALONE = re.compile(rb"[-+.eE0-9]+")
# Tokens that may begin a value and continue it: a quote or the punctuation before a number, and more.
_OPENING = re.compile(rb'".|[:,\[]-?[0-9]', re.DOTALL)
_MOST_COMPARED = 64  # positions whose continuations are compared; chosen: with more they seldom agree
_SEPARATOR = b"\n"  # between texts: JSON writes a line break otherwise
# UTF-8 bytes of an ASCII character in JSON.
_ESCAPED = numpy.array([len(spelled_json(chr(code))) - 2 for code in range(128)])


class VocabularyTree:
    """The tokens of a vocabulary by the bytes of their text, and by the starts of these.

    ``openings``: whether a token may begin a value and continue it, booleans [vocabulary]. ``quoted``: whether it has
    a quote.
    """

    def __init__(self, engine: Any, vocabulary: int) -> None:
        self.texts = [bytes(engine.decode_bytes([token])) for token in range(vocabulary)]
        self._ids: dict[bytes, tuple[int, ...]] = {}
        for token, text in enumerate(self.texts):
            for length in range(1, len(text)):
                self._ids.setdefault(text[:length], ())
            self._ids[text] = (*self._ids.get(text, ()), token)
        self.longest = max(map(len, self.texts))
        self.openings = torch.tensor([_OPENING.search(text) is not None for text in self.texts])
        self.quoted = torch.tensor([b'"' in text for text in self.texts])

    def starts_of(self, texts: Iterable[bytes]) -> set[int]:
        """The tokens that one of the texts begins with."""
        found, ids = set[int](), self._ids
        for text in texts:
            for length in range(1, len(text) + 1):
                tokens = ids.get(text[:length])
                if tokens is None:
                    break
                found.update(tokens)
        return found


class PromptTexts:
    """The texts of one call's messages as bytes, with the places where a value may begin and end.

    ``text``: the texts as JSON strings without their quotes. It ends with a byte that continues no value.
    """

    def __init__(self, grounding: Grounding) -> None:
        self.schema, self._texts = grounding.schema, grounding.texts
        self._begins: dict[tuple[LeafKind, bool, bool, bool], Any] = {}
        self._first_tokens: dict[tuple[LeafKind, bool, bool, bool], set[int]] = {}

    @functools.cached_property
    def text(self) -> bytes:
        """The bytes of the texts."""
        return b"".join(_json_bytes(text) + _SEPARATOR for text in self._texts) or _SEPARATOR

    @functools.cached_property
    def array(self) -> Any:
        """``text`` as numbers."""
        return numpy.frombuffer(self.text, numpy.uint8)

    def begins(self, kind: LeafKind, rule: GroundedRule) -> Any:
        """Positions where a value may begin."""
        key = kind, rule.starts, rule.numbers, rule.integers
        if key not in self._begins:
            begins, words = self._borders[kind]
            allowed = begins & words if rule.starts else begins
            allowed = allowed & self._numbers[0] if rule.numbers else allowed
            self._begins[key] = numpy.flatnonzero(allowed & self._numbers[2] if rule.integers else allowed)
        return self._begins[key]

    def may_end(self, kind: LeafKind, rule: GroundedRule, positions: Any) -> bool:
        """Whether a value may end at one of the positions."""
        if rule.numbers:
            positions = positions[self._numbers[1][positions]]
        return bool(len(positions)) and (not rule.ends or bool(self._borders[kind][1][positions].any()))

    def first_tokens(self, kind: LeafKind, rule: GroundedRule, tree: VocabularyTree) -> set[int]:
        """The tokens that a value may begin with."""
        key = kind, rule.starts, rule.numbers, rule.integers
        if key not in self._first_tokens:
            self._first_tokens[key] = tree.starts_of(self.windows(self.begins(kind, rule), tree.longest))
        return self._first_tokens[key]

    def windows(self, positions: Any, size: int) -> set[bytes]:
        """The different texts of ``size`` bytes at positions."""
        text = self.text
        return {text[position : position + size] for position in positions.tolist()}

    @functools.cached_property
    def _borders(self) -> dict[LeafKind, tuple[Any, Any]]:
        """Where a value may begin, and where a word or number may end or begin: booleans [bytes]."""
        found: dict[LeafKind, tuple[Any, Any]] = {}
        kinds: tuple[LeafKind, ...] = ("string", "number")
        for kind in kinds:
            begins, words = [numpy.zeros(0, bool)], [numpy.zeros(0, bool)]
            for text in self._texts:
                at, free = _characters(text, kind)
                size = int(at[-1]) + 1
                begins.append(_marked(size, at[:-1] if kind == "string" else _numbers(text, at)))
                words.append(_marked(size, at[free]))
            found[kind] = numpy.concatenate(begins), numpy.concatenate(words)
        return found

    @functools.cached_property
    def _numbers(self) -> tuple[Any, Any, Any]:
        """Where no number is cut by a value that begins or ends there, and integers may begin: booleans [bytes]."""
        found = [numpy.zeros(0, bool)], [numpy.zeros(0, bool)], [numpy.zeros(0, bool)]
        for text in self._texts:
            at, _ = _characters(text, "number")
            for masks, forbidden in zip(found, number_parts(text), strict=True):
                masks.append(~_marked(int(at[-1]) + 1, at[sorted(forbidden)]))
        begins, ends, integers = map(numpy.concatenate, found)
        return begins, ends, integers


def _json_bytes(text: str) -> bytes:
    return spelled_json(text)[1:-1].encode("utf-8", "surrogatepass")


def _marked(size: int, positions: Any) -> Any:
    marks = numpy.zeros(size, bool)
    marks[positions] = True
    return marks


def _characters(text: str, kind: LeafKind) -> tuple[Any, Any]:
    """Where the characters begin in the text's bytes, its end too, and whether no word (or number) spans the place."""
    codes = numpy.frombuffer(text.encode("utf-32-le", "surrogatepass"), numpy.uint32)
    sizes = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    ascii_only = codes < 128
    sizes[ascii_only] = _ESCAPED[codes[ascii_only]]
    kinds, places = numpy.unique(codes, return_inverse=True)
    joins = str.isalnum if kind == "string" else str.isdecimal
    inside = numpy.array([joins(chr(code)) for code in kinds.tolist()], bool)[places]
    free = numpy.ones(len(codes) + 1, bool)
    free[1:-1] = ~(inside[:-1] & inside[1:])
    return numpy.concatenate([[0], numpy.cumsum(sizes)]).astype(numpy.int64), free


def _numbers(text: str, at: Any) -> Any:
    """Where the digits of numbers stand in the text's bytes, and the minus signs before them."""
    return at[[found.start() for found in re.finditer("[0-9]|-(?=[0-9])", text)]]


class _Value(NamedTuple):
    """A grounded value that is being written. ``positions``: where it may end in the texts so far."""

    prompt: PromptTexts
    rule: GroundedRule
    kind: LeafKind
    positions: Any
    others: tuple[bytes, ...]  # what is left of the rule's other values that begin so
    is_empty: bool = True

    @classmethod
    def begun(cls, prompt: PromptTexts, rule: GroundedRule, kind: LeafKind) -> _Value:
        others = tuple(_json_bytes(text) if kind == "string" else text.encode() for text in rule.others)
        return cls(prompt, rule, kind, prompt.begins(kind, rule), others)

    def after(self, byte: int) -> _Value | None:
        """The value with one more byte; None where it then stands nowhere."""
        positions = self.positions
        positions = positions[self.prompt.array[positions] == byte] + 1
        others = tuple(text[1:] for text in self.others if text and text[0] == byte) if self.others else ()
        if not len(positions) and not others:
            return None
        return self._replace(positions=positions, others=others, is_empty=False)

    def may_end(self) -> bool:
        """Whether the value may be complete."""
        if b"" in self.others:
            return True
        return not self.is_empty and self.prompt.may_end(self.kind, self.rule, self.positions)

    def next_tokens(self, tree: VocabularyTree) -> set[int]:
        """The tokens that continue the value, without those that end it."""
        if self.is_empty:
            found = self.prompt.first_tokens(self.kind, self.rule, tree)
        else:
            found = tree.starts_of(self.prompt.windows(self.positions, tree.longest))
        found = found | tree.starts_of(self.others) if self.others else found
        if self.kind == "number":  # a comma of the text would be one of the JSON, which ends the number
            return {token for token in found if _NUMBER_ALONE.fullmatch(tree.texts[token])}
        return found

    def continuation(self, size: int) -> tuple[bytes, bool]:
        """Up to ``size`` bytes that follow in the texts wherever the value stands, and whether more may follow."""
        if self.is_empty or self.others or len(self.positions) > _MOST_COMPARED:
            return b"", False
        windows = self.prompt.windows(self.positions, size)
        first, last = min(windows), max(windows)  # all others begin as both of these do
        differing = (n for n, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
        common = first[: next(differing, min(len(first), len(last)))].split(_SEPARATOR)[0]
        return common, len(common) == size or len(windows) > 1


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
