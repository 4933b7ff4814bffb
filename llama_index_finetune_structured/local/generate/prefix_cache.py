"""What earlier prompts left: keys and values of token prefixes, in a tree, the least used forgotten first.

A prompt is stored along the tree's edges, so what prompts share (system message and schema, a chunk that is asked
about again) is kept once. As SGLang's RadixAttention does: https://arxiv.org/abs/2312.07104.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from .kv_cache import Piece

__all__ = ["PrefixCache"]

_LIMIT_BYTES = 512 * 2**20


@dataclass
class _Node:
    """An edge of the tree: tokens with their keys and values, and what followed them."""

    tokens: tuple[int, ...]
    piece: Piece
    parent: _Node | None
    used: int = 0
    children: dict[int, _Node] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(part.nbytes for pair in self.piece for part in pair)


class PrefixCache:
    """Keys and values by token prefix, of at most ``limit_bytes``. For one thread at a time."""

    def __init__(self, limit_bytes: int = _LIMIT_BYTES) -> None:
        self._root = _Node((), [], None)
        self._limit, self.bytes, self._clock = limit_bytes, 0, 0

    def find(self, prompt: Sequence[int]) -> list[Piece]:
        """The pieces of the longest known prefix of a prompt, in order; never of its last token."""
        return [piece for piece in (_cut(n.piece, 0, k) for n, k in self._walk(prompt[:-1])) if piece]

    def add(self, prompt: Sequence[int], save: Callable[[int, int], Piece]) -> None:
        """Keep a prompt; ``save(start, stop)`` copies the keys and values of some of its tokens."""
        path = list(self._walk(prompt))
        known = sum(shared for _, shared in path)
        if known < len(prompt):
            node, shared = path[-1] if path else (self._root, 0)
            if shared < len(node.tokens):
                self._split(node, shared)
            new = _Node(tuple(prompt[known:]), save(known, len(prompt)), node, self._clock)
            node.children[prompt[known]] = new
            self.bytes += new.size
        self._forget()

    def _walk(self, prompt: Sequence[int]) -> Iterator[tuple[_Node, int]]:
        """The nodes along a prompt, with how many of each node's tokens it shares; only the last may differ."""
        self._clock += 1
        node, known = self._root, 0
        while known < len(prompt) and (child := node.children.get(prompt[known])) is not None:
            node, child.used = child, self._clock
            shared = _shared(node.tokens, prompt[known : known + len(node.tokens)])
            known += shared
            yield node, shared
            if shared < len(node.tokens):
                return

    def _split(self, node: _Node, at: int) -> None:
        """Cut an edge in two, so that another can leave it there."""
        rest = _Node(node.tokens[at:], _copy(_cut(node.piece, at, None)), node, node.used, node.children)
        for child in rest.children.values():
            child.parent = rest
        node.tokens, node.piece = node.tokens[:at], _copy(_cut(node.piece, 0, at))
        node.children = {rest.tokens[0]: rest}

    def _forget(self) -> None:
        while self.bytes > self._limit:
            leaf = min((n for n in self._nodes(self._root) if not n.children), key=lambda n: n.used)
            assert leaf.parent is not None
            del leaf.parent.children[leaf.tokens[0]]
            self.bytes -= leaf.size

    def _nodes(self, node: _Node) -> Iterator[_Node]:
        for child in node.children.values():
            yield child
            yield from self._nodes(child)


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _cut(piece: Piece, start: int, stop: int | None) -> Piece:
    return [(keys[start:stop], values[start:stop]) for keys, values in piece]


def _copy(piece: Piece) -> Piece:
    return [(keys.clone(), values.clone()) for keys, values in piece]
