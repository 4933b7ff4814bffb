"""Short texts that the strings and numbers of a schema accept, as candidates for the end of an unfinished answer.

Candidates need not be right: the grammar checks each before it is used.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ...json_schema import UNIONS, follow_references, sub_schemas

__all__ = ["largest_growth", "sample_texts"]

_SAMPLES = {
    "date-time": "2026-01-01T00:00:00Z",
    "date": "2026-01-01",
    "time": "00:00:00Z",
    "duration": "P1D",
    "email": "a@a.aa",
    "hostname": "a",
    "ipv4": "0.0.0.0",
    "ipv6": "::",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "uri": "a:b",
}
# One character of each class that patterns name; a negated class is sampled from the last.
_CLASSES = {"d": "0", "w": "a", "s": " ", "D": "a", "W": "-", "S": "a"}
_OTHERS = "a0-A ~!\u00e9"
_UNICODE = re.compile(r"\\p\{?\^?(L[ul]?|N|P)?\w*\}?")
_UNICODE_SAMPLES = {"L": "a", "Ll": "a", "Lu": "A", "N": "0", "P": "-"}
_COUNT = re.compile(r"\{(\d+)(?:,\d*)?\}")
_LONGEST = 4096  # characters; chosen: longer counted repeats are no longer written out
_DEPTH = 12  # levels of a recursive schema; chosen: deeper than schemas written by hand
# Bytes, chosen: numbers with limits and formats are shorter; so are "false" and a number without limits; so is a token.
_VALUE_SIZE, _LITERAL_SIZE, _TOKEN = 48, 5, 24
_LIMITS = {
    "minimum": -math.inf,
    "exclusiveMinimum": -math.inf,
    "maximum": math.inf,
    "exclusiveMaximum": math.inf,
}
_SIZED = ("format", "multipleOf", *_LIMITS)


def _smallest_match(pattern: str) -> str:
    """A short text that a regular expression matches; about right is enough."""
    text, _ = _Pattern(pattern).alternatives()
    return text[:_LONGEST]


class _Pattern:
    """Recursive descent through a regular expression, taking the shortest branch and the fewest repeats."""

    def __init__(self, pattern: str) -> None:
        self._pattern = _UNICODE.sub(lambda match: _UNICODE_SAMPLES.get(match[1] or "", "a"), pattern)
        self._at = 0

    def alternatives(self) -> tuple[str, int]:
        """The shortest branch, and the size of the longest, each with its fewest repeats."""
        texts, sizes = [""], [0]
        while self._at < len(self._pattern) and self._pattern[self._at] != ")":
            if self._pattern[self._at] == "|":
                self._at += 1
                texts.append("")
                sizes.append(0)
                continue
            atom, atom_size = self._atom()
            least = self._repeats()
            texts[-1] = (texts[-1] + atom * least)[:_LONGEST]
            sizes[-1] = min(sizes[-1] + atom_size * max(1, least), _LONGEST)
        self._at += 1  # the closing parenthesis
        return min(texts, key=len), max(sizes)

    def _atom(self) -> tuple[str, int]:
        character = self._pattern[self._at]
        self._at += 1
        if character == "(":
            flags = re.compile(r"\?(?:P?<\w+>|[a-zA-Z-]*:)").match(self._pattern, self._at)
            self._at = flags.end() if flags else self._at
            return self.alternatives()
        if character in "^$":
            return "", 0
        if character == "[":
            return self._character_class(), 1
        if character == "\\" and self._at < len(self._pattern):
            escaped = self._pattern[self._at]
            self._at += 1
            return ("", 0) if escaped in "bBAzZ" else (_CLASSES.get(escaped, escaped), 1)
        return ("a" if character == "." else character), 1

    def _character_class(self) -> str:
        end = re.compile(r"\^?\]?(?:\\.|[^\]\\])*").match(self._pattern, self._at)
        body = str(end[0]) if end else ""
        self._at += len(body) + 1
        for candidate in _OTHERS + body:
            try:
                if re.fullmatch(f"[{body}]", candidate):
                    return candidate
            except re.error:
                break
        return str(body.lstrip("^\\"))[:1] or "a"

    def _repeats(self) -> int:
        if self._at >= len(self._pattern):
            return 1
        least = 1
        if self._pattern[self._at] in "*?+":
            least = int(self._pattern[self._at] == "+")
            self._at += 1
        elif count := _COUNT.match(self._pattern, self._at):
            least, self._at = int(count[1]), count.end()
        else:
            return 1
        if self._pattern[self._at : self._at + 1] == "?":  # lazy
            self._at += 1
        return least


def sample_texts(schema: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Texts for the strings and for the numbers of a schema, without quotes and escaped as in JSON."""
    strings: dict[str, None] = {}
    numbers: dict[str, None] = {}
    for node in _nodes(schema):
        for value in _constants(node):
            if isinstance(value, str):
                strings[_json(value)[1:-1]] = None
            else:
                numbers[_json(value)] = None
        if isinstance(pattern := node.get("pattern"), str):
            strings[_json(_smallest_match(pattern))[1:-1]] = None
        if (sample := _SAMPLES.get(str(node.get("format")))) is not None:
            strings[sample] = None
        if node.get("type") in ("number", "integer"):
            numbers.update(dict.fromkeys(_number_samples(node)))
    return list(strings), list(numbers)


def _number_samples(node: Mapping[str, Any]) -> Iterator[str]:
    """Zero, numbers close to the limits, and the multiples next to them."""
    yield "0"
    step = node.get("multipleOf", 1)
    for keyword in _LIMITS:
        limit = node.get(keyword)
        if isinstance(limit, (int, float)) and isinstance(step, (int, float)) and step > 0:
            nearest = math.floor(limit / step)
            yield from (_json(round(step * (nearest + offset), 12)) for offset in (-1, 0, 1, 2))
            yield from (str(int(limit) + offset) for offset in (-1, 0, 1))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _nodes(node: Any) -> Iterator[Mapping[str, Any]]:
    """A schema and every schema inside it."""
    if isinstance(node, Mapping):
        yield node
        for _, _, child in sub_schemas(node):
            yield from _nodes(child)


def largest_growth(schema: Mapping[str, Any]) -> int:
    """Bytes by which one token may lengthen the shortest end of an answer, at most: it may begin a required value.

    The whole answer has begun already, unless the schema refers to itself.
    """
    nodes = [node for node in _nodes(schema) if node is not schema or _refers_to_root(schema)]
    names = [len(name.encode()) for node in nodes for name in node.get("properties", ())]
    sizes = _ValueSizes(schema)
    largest = max((sizes.of(node) for node in nodes), default=0)
    return largest + max(names, default=0) + _TOKEN


def _refers_to_root(schema: Mapping[str, Any]) -> bool:
    return any(node.get("$ref") == "#" for node in _nodes(schema))


class _ValueSizes:
    """About the bytes of the smallest value of each sub-schema of ``root``, rather too many than too few."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._known: dict[tuple[int, int], int] = {}  # by sub-schema and depth: unions may hold each other

    def of(self, node: Any, depth: int = 0) -> int:
        """The size of a sub-schema, which is part of the root."""
        if not isinstance(node, Mapping) or depth > _DEPTH:
            return _VALUE_SIZE
        key = (id(node), depth)
        if key not in self._known:
            self._known[key] = self._computed(node, depth)
        return self._known[key]

    def _computed(self, node: Mapping[str, Any], depth: int) -> int:
        if "$ref" in node:
            return self.of(follow_references(self._root, node), depth + 1)
        sizes = [_scalar_size(node), self._array(node, depth), self._object(node, depth)]
        for key in UNIONS:
            if branches := [self.of(branch, depth + 1) for branch in _list(node.get(key))]:
                sizes.append(sum(branches) if key == "allOf" else min(branches))
        return max(sizes)

    def _array(self, node: Mapping[str, Any], depth: int) -> int:
        least = _count(node, "minItems")
        if not least:
            return 2
        items = [*_list(node.get("prefixItems"))[:least], node.get("items")]
        return 2 + least * (1 + max(self.of(item, depth + 1) for item in items))

    def _object(self, node: Mapping[str, Any], depth: int) -> int:
        size = 2
        if least := _count(node, "minProperties"):
            size += least * (8 + self.of(node.get("additionalProperties"), depth + 1))
        properties = node.get("properties")
        properties = properties if isinstance(properties, Mapping) else {}
        for name in _list(node.get("required")):
            size += 4 + len(str(name).encode()) + self.of(properties.get(name), depth + 1)
        return size


def _scalar_size(node: Mapping[str, Any]) -> int:
    sizes = [_LITERAL_SIZE, *(len(_json(value).encode()) for value in _constants(node))]
    if any(keyword in node for keyword in _SIZED) and not _takes_a_digit(node):
        sizes.append(_VALUE_SIZE)
    if isinstance(pattern := node.get("pattern"), str):
        sizes.append(4 * _Pattern(pattern).alternatives()[1] + 2)  # a character has up to four bytes
    return max(*sizes, _count(node, "minLength") + 2)


def _takes_a_digit(node: Mapping[str, Any]) -> bool:
    """Whether the limits of a number let 0, 1 or -1 through, as most do."""
    if "format" in node or "multipleOf" in node:
        return False
    limits = [node.get(keyword, default) for keyword, default in _LIMITS.items()]
    if not all(isinstance(limit, (int, float)) for limit in limits):
        return False
    least, above, most, below = limits
    return any(least <= digit <= most and above < digit < below for digit in (0, 1, -1))


def _constants(node: Mapping[str, Any]) -> list[Any]:
    """The values of an ``enum``, and the ``const``."""
    return [*_list(node.get("enum")), *([node["const"]] if "const" in node else ())]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _count(node: Mapping[str, Any], keyword: str) -> int:
    value = node.get(keyword, 0)
    return int(value) if isinstance(value, (int, float)) else 0
