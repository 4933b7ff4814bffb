"""The shortest end of an unfinished answer, found by a search over copies of the grammar's state.

llguidance tells which bytes may come next, not how far the end is. Where bytes are forced, or a bracket may close,
there is nothing to search; the choices are the kind of a value, the name of a property and the characters of a
string or number. The search takes the cheapest first, and forgets the content of strings and numbers that have
ended, since what follows seldom depends on it.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import llguidance

__all__ = ["EndingSearch"]

_MOST_STATES = 4000  # chosen: a few tenths of a second; the greedy walk follows
_LONGEST_ENDING = 1 << 16  # bytes of the greedy walk; chosen: longer than any token limit
_MOST_STEPS = 1 << 13  # of the greedy walk; chosen: some seconds, since each copies what is written so far
_MOST_TAILS = (
    1 << 22
)  # bytes of all tails; chosen: 10,000 short members of an enum, or a pattern of 2,000 characters
_LONGEST_SCALAR = (
    512  # bytes searched one by one; chosen: longer than patterns demand; longer ones are sampled
)
_TAIL = 10  # bytes that stand for the overhead of a tail; chosen: what splitting one into tokens costs
_WIDTH = 24  # states kept a byte; chosen
_NUMBER_WIDTH = 128  # the same for numbers; chosen: multiples of less than 1000 are found
_KEPT_ALIKE = 4  # states kept of those with equal next bytes; chosen
_ENDS = 6  # ends of a string that are tried; chosen: members of an enum, names of tagged unions
_KEY_ENDS = 64  # the same for property names
_MANY = 40  # bytes; where more are allowed the string is free, and a few of them stand for all
_FREE = b"a0bc-.:/@A_ 12"
_QUOTE, _BACKSLASH = ord('"'), ord("\\")
_NUMBER = frozenset(b"-0123456789")
_NUMBER_INSIDE = _NUMBER | frozenset(b".eE+")
_AFTER_VALUE, _STRUCTURE = b"}],", b"{}[],:"
_ALL, _PRINTABLE, _NOT_ASCII = range(256), range(32, 127), range(128, 256)
_STRUCTURAL = b'}],"[{:ntf-0123456789.eE+'


@dataclass
class _Place:
    """What the JSON text so far leaves open: brackets, with the keys of objects, and whether a string is open.

    ``shape``: hash of its structure and keys, without strings, numbers and literals.
    """

    keys: tuple[frozenset[bytes] | None, ...] = ()
    in_string: bool = False
    empty: bool = False  # the open string has no content yet
    escaped: bool = False
    is_key: bool = False
    expects_key: bool = False
    number: bool = False
    shape: int = 0
    string: bytes = b""
    missing: int = 0  # bytes that an unfinished character, or its \\u escape, still needs

    def after(self, text: bytes) -> _Place:
        """The place after more text."""
        place = _Place(**self.__dict__)
        for byte in text:
            place._append(byte)
        return place

    def _append(self, byte: int) -> None:
        if self.in_string:
            self._append_in_string(byte)
            return
        self.number = byte in (_NUMBER_INSIDE if self.number else _NUMBER)
        if byte in _STRUCTURE:
            self.shape = hash((self.shape, byte))
        if byte == _QUOTE:
            self.in_string, self.empty, self.is_key, self.string = True, True, self.expects_key, b""
        elif byte in b"{[":
            self.keys = (*self.keys, frozenset() if byte == ord("{") else None)
            self.expects_key = byte == ord("{")
        elif byte in b"}]":
            self.keys, self.expects_key = self.keys[:-1], False
        elif byte == ord(","):
            self.expects_key = bool(self.keys) and self.keys[-1] is not None
        elif byte == ord(":"):
            self.expects_key = False

    def _append_in_string(self, byte: int) -> None:
        self.empty = False
        if self.escaped or byte != _QUOTE:
            self.string += bytes([byte]) if self.is_key else b""
            is_unicode_escape = self.escaped and byte == ord("u")
            self.missing = 4 if is_unicode_escape else max(_continuations(byte), self.missing - 1)
            self.escaped = not self.escaped and byte == _BACKSLASH
            return
        self.in_string = False
        if self.is_key and self.keys and (names := self.keys[-1]) is not None:
            self.keys = (*self.keys[:-1], names | {self.string})
            self.shape = hash((self.shape, self.string))


def _continuations(byte: int) -> int:
    """How many bytes follow this one in a character's UTF-8."""
    return (byte >= 0xC0) + (byte >= 0xE0) + (byte >= 0xF0)


@dataclass
class _State:
    """A state of the search."""

    matcher: llguidance.LLMatcher
    text: bytes
    place: _Place


class EndingSearch:
    """Shortest ends of answers in one grammar.

    ``strings`` and ``numbers``: texts that its strings and numbers may accept, for patterns whose next characters do
    not show how much they still require.
    """

    def __init__(self, engine: Any, strings: Sequence[str] = (), numbers: Sequence[str] = ()) -> None:
        self._engine = engine
        whole = {(text + '"').encode() for text in strings}
        self._whole_strings = self._with_tokens(sorted(whole, key=_by_length))
        self._string_tails = self._with_tokens(_suffixes(whole))
        self._number_tails = self._with_tokens(_suffixes(text.encode() for text in numbers))
        self._byte_tokens: dict[int, int] = {}
        for byte in range(256):
            tokens = engine.tokenize_bytes(bytes([byte]))
            if len(tokens) == 1 and engine.decode_bytes(tokens) == bytes([byte]):
                self._byte_tokens[byte] = tokens[0]

    def tokens(self, matcher: llguidance.LLMatcher, written: bytes) -> list[int] | None:
        """Tokens of a short end of the answer ``written`` so far; None where the search finds none."""
        start = _State(matcher.deep_copy(), b"", _Place().after(written))
        text = self._cheapest(start)
        if text is None:
            text = self._greedy(start)
        return None if text is None else self._tokens(text)

    def _with_tokens(self, texts: Iterable[bytes]) -> list[tuple[bytes, list[int]]]:
        return [(text, self._tokens(text)) for text in texts]

    def _tokens(self, text: bytes) -> list[int]:
        tokens: list[int] = self._engine.tokenize_bytes(text)
        return tokens

    def _cheapest(self, start: _State) -> bytes | None:
        order = itertools.count()
        queue = [(0, next(order), start)]
        seen: set[Any] = set()
        for _ in range(_MOST_STATES):
            if not queue:
                return None
            cost, _, state = heapq.heappop(queue)
            state = self._forced(state)
            if len(state.text) > cost:  # what is forced has its price too
                heapq.heappush(queue, (len(state.text), next(order), state))
                continue
            if state.matcher.is_accepting():
                return state.text
            place = state.place
            inside = (place.in_string, place.escaped, place.missing)
            key = (place.shape, inside, self._allowed(state))
            if key in seen:
                continue
            seen.add(key)
            for following in self._following(state):
                heapq.heappush(queue, (len(following.text), next(order), following))
        return None

    def _greedy(self, state: _State) -> bytes | None:
        """The end by the first choice each time."""
        for _ in range(_MOST_STEPS):
            state = self._forced(state)
            if state.matcher.is_accepting():
                return state.text
            following = next(self._following(state), None)
            if following is None or len(following.text) > _LONGEST_ENDING:
                return None
            state = following
        return None

    def _forced(self, state: _State) -> _State:
        forced = bytes(state.matcher.compute_ff_bytes())
        return (self._after(state, forced) or state) if forced else state

    def _after(self, state: _State, text: bytes) -> _State | None:
        """The state after more text; None where the grammar refuses it."""
        matcher, tokens = state.matcher.deep_copy(), self._tokens(text)
        if matcher.validate_tokens(tokens) < len(tokens) or not matcher.consume_tokens(tokens):
            return None
        return _State(matcher, state.text + text, state.place.after(text))

    def _accepts(self, state: _State, text: bytes) -> bool:
        return _validates(state, self._tokens(text))

    def _following(self, state: _State) -> Iterator[_State]:
        """The states after each choice, the likely shortest first."""
        if state.place.in_string:
            yield from self._all_after(state, self._string_ends(state))
            return
        allowed = self._allowed(state)
        for byte in _AFTER_VALUE:
            if byte in allowed:
                yield from self._all_after(state, [bytes([byte])])
                return
        if state.place.number or allowed & _NUMBER:
            yield from self._all_after(state, self._number_ends(state))
        others = [byte for byte in b'ntf"[{:' if byte in allowed]
        if not state.place.number:
            yield from self._all_after(state, [bytes([byte]) for byte in others])

    def _all_after(self, state: _State, texts: Sequence[bytes]) -> Iterator[_State]:
        return (after for text in texts if (after := self._after(state, text)) is not None)

    def _allowed(self, state: _State) -> frozenset[int]:
        """The bytes that may come next. Asked one by one: a mask of all tokens takes longer in a pattern."""
        place = state.place
        if place.in_string and not (place.escaped or place.missing):
            return self._of(state, _PRINTABLE) or self._of(state, _NOT_ASCII)
        return self._of(state, _ALL if place.in_string else _STRUCTURAL)

    def _of(self, state: _State, within: Iterable[int]) -> frozenset[int]:
        """Which of some bytes may come next."""
        return frozenset(
            byte
            for byte in within
            if (token := self._byte_tokens.get(byte)) is not None
            and state.matcher.validate_tokens([token]) == 1
        )

    def _number_ends(self, state: _State) -> list[bytes]:
        def ended(after: _State) -> bool:
            return after.matcher.is_accepting() or not self._allowed(after).isdisjoint(_AFTER_VALUE)

        sampled = [
            tail
            for tail, tokens in self._number_tails
            if _validates(state, tokens) and (after := self._after(state, tail)) and ended(after)
        ]
        return sampled[:2] or self._ends(state, _NUMBER_INSIDE, ended, 1)

    def _string_ends(self, state: _State) -> list[bytes]:
        if state.place.escaped or state.place.missing:  # first the end of the character
            return [bytes([byte]) for byte in sorted(self._allowed(state), reverse=True)[:_ENDS]]
        is_key, taken = state.place.is_key, frozenset[bytes]()
        if is_key and state.place.keys:
            taken = state.place.keys[-1] or taken
        if not is_key and self._accepts(state, b'"'):
            return [b'"']
        sampled = [] if is_key else self._sampled_string_ends(state)

        def ended(after: _State) -> bool:
            return not after.place.in_string and not (
                is_key and state.place.string + after.text[len(state.text) : -1] in taken
            )

        if sampled:
            return sorted(set(sampled), key=_by_length)[:_ENDS]
        if not is_key:
            return self._ends(state, frozenset(range(256)), ended, _ENDS)
        free = len(self._allowed(state)) > _MANY
        return self._ends(state, frozenset(range(256)), ended, 1 if free else _KEY_ENDS)

    def _sampled_string_ends(self, state: _State) -> list[bytes]:
        """Ends of a string by the known texts and, for a string that is too short, by a repeated letter."""
        known = self._whole_strings if state.place.empty else self._string_tails
        ends = (text for text, tokens in known if _validates(state, tokens))
        return [*itertools.islice(ends, _ENDS), *self._padding(state)]

    def _padding(self, state: _State) -> list[bytes]:
        letter = self._byte_tokens.get(ord("a"))
        if letter is None:
            return []
        least, bound = 0, 1
        while bound < _LONGEST_ENDING and not self._accepts(state, b"a" * bound + b'"'):
            most = int(state.matcher.validate_tokens([letter] * bound))
            if most < bound:
                bound = most
                break
            least, bound = bound, 2 * bound
        while least < bound:
            middle = (least + bound) // 2
            if self._accepts(state, b"a" * middle + b'"'):
                bound = middle
            else:
                least = middle + 1
        end = b"a" * bound + b'"'
        return [end] if self._accepts(state, end) else []

    def _ends(self, state: _State, inside: frozenset[int], ended: Any, most: int) -> list[bytes]:
        """Search the end of a string or number byte by byte."""
        ends: list[bytes] = []
        layer = [state]
        for _ in range(_LONGEST_SCALAR):
            following: list[_State] = []
            alike: dict[Any, int] = {}
            for current in layer:
                for text in self._choices(current, inside):
                    after = self._after(current, text)
                    if after is None:
                        continue
                    if ended(after):
                        ends.append(after.text[len(state.text) :])
                        continue
                    if state.place.in_string and not after.place.in_string:
                        continue  # a key that the object has already
                    key = (self._allowed(after), after.matcher.compute_ff_bytes())
                    alike[key] = alike.get(key, 0) + 1
                    if alike[key] <= (_KEPT_ALIKE if after.place.in_string else _NUMBER_WIDTH):
                        following.append(after)
            layer = following[: max(_WIDTH if state.place.in_string else _NUMBER_WIDTH, most)]
            if len(ends) >= most or not layer or (ends and not state.place.in_string):
                break
        return sorted(ends, key=_by_length)[:most]

    def _choices(self, state: _State, inside: frozenset[int]) -> list[bytes]:
        """The next bytes to try inside a string or number."""
        if forced := bytes(state.matcher.compute_ff_bytes()):
            end = len(forced)
            if state.place.in_string and not state.place.escaped and b'"' in forced:
                end = forced.index(b'"') + 1
            return [forced[:end]]
        allowed = self._allowed(state) & inside
        if len(allowed) <= _MANY:
            return [bytes([byte]) for byte in sorted(allowed)]
        few = [byte for byte in b'"' + _FREE if byte in allowed] or sorted(allowed)[:4]
        return [bytes([byte]) for byte in few]


def _validates(state: _State, tokens: list[int]) -> bool:
    return int(state.matcher.validate_tokens(tokens)) == len(tokens)


def _by_length(text: bytes) -> tuple[int, bytes]:
    """Shortest first, and texts of one length in the same order in every process."""
    return len(text), text


def _suffixes(texts: Iterable[bytes]) -> list[bytes]:
    """Every ending of the texts once, the shortest first; of the shortest texts alone where they would be too many."""
    tails, size = set[bytes](), 0
    for text in sorted(texts, key=_by_length):
        size += len(text) * (len(text) // 2 + _TAIL)
        if size > _MOST_TAILS:
            break
        tails |= {text[start:] for start in range(len(text))}
    return sorted(tails, key=_by_length)
