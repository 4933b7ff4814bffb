"""A prompt's texts and a vocabulary's tokens as bytes: where a value may begin, go on and end in the texts."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Any

import numpy
import torch

from ...written_values.kinds import WrittenKind
from ..schema.answer_places import LeafKind
from ..schema.grounding import GroundedRule, Grounding
from ..schema.prompt_values import number_parts, values_alone
from ..schema.spelling import spelled_json

__all__ = ["SEPARATOR", "PromptTexts", "VocabularyTree", "json_bytes"]

# Tokens that may begin a value and continue it: a quote or the punctuation before a number, and more.
_OPENING = re.compile(rb'".|[:,\[]-?[0-9]', re.DOTALL)
SEPARATOR = b"\n"
"""Between texts: JSON writes a line break otherwise."""
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


_Place = tuple[LeafKind, bool, bool, bool, WrittenKind | None]


def _place(kind: LeafKind, rule: GroundedRule) -> _Place:
    """What decides where values begin."""
    return kind, rule.starts, rule.numbers, rule.integers, rule.alone


class PromptTexts:
    """The texts of one call's messages as bytes, with the places where a value may begin and end.

    ``text``: the texts as JSON strings without their quotes. It ends with a byte that continues no value.
    """

    def __init__(self, grounding: Grounding) -> None:
        self.schema, self._texts = grounding.schema, grounding.texts
        self._begins: dict[_Place, Any] = {}
        self._first_tokens: dict[_Place, set[int]] = {}
        self._alone: dict[WrittenKind, tuple[dict[int, set[int]], Any]] = {}

    @functools.cached_property
    def text(self) -> bytes:
        """The bytes of the texts."""
        return b"".join(json_bytes(text) + SEPARATOR for text in self._texts) or SEPARATOR

    @functools.cached_property
    def array(self) -> Any:
        """``text`` as numbers."""
        return numpy.frombuffer(self.text, numpy.uint8)

    def begins(self, kind: LeafKind, rule: GroundedRule) -> Any:
        """Positions where a value may begin."""
        key = _place(kind, rule)
        if key not in self._begins:
            begins, words = self._borders[kind]
            allowed = begins & words if rule.starts else begins
            allowed = allowed & self._numbers[0] if rule.numbers else allowed
            allowed = allowed & (self.furthest(rule.alone) > 0) if rule.alone else allowed
            self._begins[key] = numpy.flatnonzero(allowed & self._numbers[2] if rule.integers else allowed)
        return self._begins[key]

    def may_end(self, kind: LeafKind, rule: GroundedRule, positions: Any, length: int) -> bool:
        """Whether a value of so many bytes may end at one of the positions."""
        if rule.numbers:
            positions = positions[self._numbers[1][positions]]
        if rule.alone:
            ends, _ = self._values_alone(rule.alone)
            is_end = [end in ends.get(end - length, ()) for end in positions.tolist()]
            positions = positions[numpy.array(is_end, bool)]
        return bool(len(positions)) and (not rule.ends or bool(self._borders[kind][1][positions].any()))

    def first_tokens(self, kind: LeafKind, rule: GroundedRule, tree: VocabularyTree) -> set[int]:
        """The tokens that a value may begin with."""
        key = _place(kind, rule)
        if key not in self._first_tokens:
            windows = self.windows(rule, self.begins(kind, rule), tree.longest)
            self._first_tokens[key] = tree.starts_of(windows)
        return self._first_tokens[key]

    def windows(self, rule: GroundedRule, positions: Any, size: int, length: int = 0) -> set[bytes]:
        """The different texts of ``size`` bytes, or that a value may have, at positions, after so many of its bytes."""
        text, places = self.text, positions.tolist()
        if not rule.alone:
            return {text[position : position + size] for position in places}
        ends = self.furthest(rule.alone)[positions - length].tolist()
        return {text[at : min(at + size, end)] for at, end in zip(places, ends, strict=True)}

    def furthest(self, kind: WrittenKind) -> Any:
        """Where the longest value ends that stands alone and begins at a place, 0 where none does: [bytes]."""
        return self._values_alone(kind)[1]

    def _values_alone(self, kind: WrittenKind) -> tuple[dict[int, set[int]], Any]:
        """Where the values begin that may stand alone, and where each may end; and the furthest ends: [bytes]."""
        if kind in self._alone:
            return self._alone[kind]
        ends, base, words = dict[int, set[int]](), 0, self._borders["string"][1]
        for text in self._texts:
            at = _characters(text, "number")[0] + base
            for begin, stops in values_alone(text, kind).items():
                known = {int(at[stop]) for stop in stops if words[at[stop]]}
                if known and words[at[begin]]:
                    ends[int(at[begin])] = known
            base = int(at[-1]) + len(SEPARATOR)
        furthest = numpy.zeros(base, numpy.int64)
        for place, within in ends.items():
            furthest[place] = max(within)
        self._alone[kind] = ends, furthest
        return self._alone[kind]

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


def json_bytes(text: str) -> bytes:
    """A text as a JSON string without its quotes."""
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
