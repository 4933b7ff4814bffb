"""Prefix cache: keys and values of earlier prompts in a radix tree, least recently used first out.

What prompts share (system message and schema, a chunk of several questions) is stored once, on one edge of the tree.
As SGLang's RadixAttention: https://arxiv.org/abs/2312.07104.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import ref

from ..model.adapter_weights import AdapterWeights
from .kv_cache import KeyValues

if TYPE_CHECKING:
    import torch

__all__ = ["PrefixCache", "prefix_cache_bytes"]

_LIMIT_BYTES = 512 * 2**20  # chosen
_SHARE = 8  # of a GPU's free memory, the part for the prefix cache; chosen: the KV cache takes the rest


@dataclass
class _Node:
    """An edge of the tree: tokens, their keys and values, and the edges that follow. ``used``: its last use."""

    tokens: tuple[int, ...]
    key_values: KeyValues
    parent: _Node | None
    used: int = 0
    children: dict[int, _Node] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of keys and values."""
        return sum(part.nbytes for pair in self.key_values for part in pair)


class PrefixCache:
    """Keys and values by adapter and token prefix, of at most ``limit_bytes``. Not thread-safe."""

    def __init__(self, limit_bytes: int = _LIMIT_BYTES) -> None:
        self._roots: dict[ref[AdapterWeights] | None, _Node] = {}
        self._limit, self.bytes, self._clock = limit_bytes, 0, 0

    def find(self, prompt: Sequence[int], adapter: AdapterWeights | None = None) -> list[KeyValues]:
        """Keys and values of the longest prefix of ``prompt`` cached with ``adapter``, in consecutive parts.

        The last token is never included: the model has to read it, to have logits for the next.
        """
        parts = (
            _slice(node.key_values, 0, shared)
            for node, shared in self._walk(self._root(adapter), prompt[:-1])
        )
        return [part for part in parts if part]

    def add(
        self,
        prompt: Sequence[int],
        save: Callable[[int, int], KeyValues],
        adapter: AdapterWeights | None = None,
    ) -> None:
        """Add a prompt; ``save(start, stop)`` copies the keys and values of its tokens ``start:stop``."""
        root = self._root(adapter)
        path = list(self._walk(root, prompt))
        cached = sum(shared for _, shared in path)
        if cached < len(prompt):
            node, shared = path[-1] if path else (root, 0)
            if shared < len(node.tokens):
                self._split(node, shared)
            new = _Node(tuple(prompt[cached:]), save(cached, len(prompt)), node, self._clock)
            node.children[prompt[cached]] = new
            self.bytes += new.size
        self._evict()

    def drop_unloaded(self) -> None:
        """Drop what is cached with adapters that no longer exist."""
        for key in [key for key in self._roots if key is not None and key() is None]:
            for node in _nodes(self._roots.pop(key)):
                self.bytes -= node.size
                node.key_values = []  # at once: nodes and their parents refer to each other

    def _root(self, adapter: AdapterWeights | None) -> _Node:
        return self._roots.setdefault(None if adapter is None else ref(adapter), _Node((), [], None))

    def _walk(self, root: _Node, prompt: Sequence[int]) -> Iterator[tuple[_Node, int]]:
        """The nodes along a prompt, each with how many of its tokens match; only the last may match in part."""
        self._clock += 1
        node, cached = root, 0
        while cached < len(prompt) and (child := node.children.get(prompt[cached])) is not None:
            node, child.used = child, self._clock
            shared = _shared_length(node.tokens, prompt[cached : cached + len(node.tokens)])
            cached += shared
            yield node, shared
            if shared < len(node.tokens):
                return

    def _split(self, node: _Node, position: int) -> None:
        """Split an edge in two, so that another can branch off there."""
        rest = _Node(
            node.tokens[position:],
            _copy(_slice(node.key_values, position, None)),
            node,
            node.used,
            node.children,
        )
        for child in rest.children.values():
            child.parent = rest
        # Copies, since a view would keep the memory of the whole edge alive after one half is evicted.
        node.tokens, node.key_values = node.tokens[:position], _copy(_slice(node.key_values, 0, position))
        node.children = {rest.tokens[0]: rest}

    def _evict(self) -> None:
        """Remove the least recently used leaves until the limit is met."""
        self.drop_unloaded()
        while self.bytes > self._limit:
            nodes = (node for root in self._roots.values() for node in _nodes(root))
            leaf = min((node for node in nodes if not node.children), key=lambda node: node.used)
            assert leaf.parent is not None
            del leaf.parent.children[leaf.tokens[0]]
            self.bytes -= leaf.size


def _nodes(root: _Node) -> Iterator[_Node]:
    """All nodes of a tree but its root. Not recursive: one prompt that grows is one level a version."""
    unseen = list(root.children.values())
    while unseen:
        node = unseen.pop()
        unseen += node.children.values()
        yield node


def prefix_cache_bytes(devices: Sequence[torch.device]) -> int:
    """Most bytes of a prefix cache on devices: more than 512 MiB on a GPU with more than 4 GiB free.

    Of several, each holds the keys and values of its layers, about as many as the others.
    """
    if any(device.type != "cuda" for device in devices):
        return _LIMIT_BYTES
    import torch

    least = min(int(torch.cuda.mem_get_info(device)[0]) for device in devices)
    return max(_LIMIT_BYTES, len(devices) * least // _SHARE)


def _shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first tokens are equal."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _slice(key_values: KeyValues, start: int, stop: int | None) -> KeyValues:
    """Views of the tokens ``start:stop``."""
    return [(keys[start:stop], values[start:stop]) for keys, values in key_values]


def _copy(key_values: KeyValues) -> KeyValues:
    return [(keys.clone(), values.clone()) for keys, values in key_values]
