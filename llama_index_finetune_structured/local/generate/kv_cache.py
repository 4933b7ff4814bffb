"""Keys and values of the rows that are being answered, each row in a slot of one buffer a layer.

A row's tokens stand at their own positions from 0, so a row can join, leave, or take back its last tokens while
the others go on, and no padding is kept.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from .flat_attention import IMPLEMENTATION, Layout

__all__ = ["Piece", "SlotModel", "can_use_slots"]

_PREFILL_TOKENS = 512
_SPARE_TOKENS = 128
_PROBE = [7, 3, 5, 11, 2, 13, 4, 6, 9, 8]

# Keys and values [tokens, kv_heads, head_dim] of a run of tokens, for every layer.
Piece = list[tuple[torch.Tensor, torch.Tensor]]


_Layer: Any = DynamicLayer  # whose own types say that it may have no keys yet


class _SlotLayer(_Layer):  # type: ignore[misc]
    """One layer's buffers, [slots, capacity, kv_heads, head_dim]; ``layout`` is set before each forward."""

    layout: Layout
    is_initialized: bool
    keys: torch.Tensor
    values: torch.Tensor

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.keys, self.values = (
            new.new_zeros(0, 0, new.shape[1], new.shape[3]) for new in (key_states, value_states)
        )

    def reserve(self, slots: int, tokens: int) -> None:
        """Have room for so many slots and tokens; what is there is kept."""
        had_slots, had_tokens = self.keys.shape[:2]
        if slots > had_slots or tokens > had_tokens:
            slots = had_slots if slots <= had_slots else max(slots, 2 * had_slots)
            tokens = had_tokens if tokens <= had_tokens else tokens + tokens // 4 + _SPARE_TOKENS
            self.keys, self.values = _grown(self.keys, slots, tokens), _grown(self.values, slots, tokens)

    def release(self) -> None:
        if self.is_initialized:
            self.keys, self.values = self.keys[:0, :0].clone(), self.values[:0, :0].clone()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [1, kv_heads, tokens, d] where the layout says; all of the rows' keys and values."""
        at = self.layout
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.reserve(at.first + at.rows, at.width)
        slots, rows = at.first + at.row_of, slice(at.first, at.first + at.rows)
        self.keys[slots, at.positions] = key_states[0].transpose(0, 1)
        self.values[slots, at.positions] = value_states[0].transpose(0, 1)
        return self.keys[rows, : at.width].transpose(1, 2), self.values[rows, : at.width].transpose(1, 2)

    def get_seq_length(self) -> int:
        return 0  # nothing is asked of it: positions are given


class SlotModel:
    """A causal LM whose rows live in slots."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.windows: set[int | None] = set()
        model.set_attn_implementation(IMPLEMENTATION)
        parameters = inspect.signature(model.forward).parameters
        self._takes_logits_to_keep = "logits_to_keep" in parameters
        # transformers renamed the argument in 5.24; the old name warns there and is gone in 5.40.
        self._cache_argument = "cache" if "cache" in parameters else "past_key_values"
        self._cache: Any = DynamicCache(config=model.config)
        self._cache.layers = [_SlotLayer() for _ in self._cache.layers]

    def release(self) -> None:
        """Forget all rows and give their memory back."""
        for layer in self._layers:
            layer.release()

    @property
    def _layers(self) -> list[_SlotLayer]:
        """The layers that have keys of their own: some models share them between layers."""
        return [layer for layer in self._cache.layers if layer.is_initialized]

    def read(self, slot: int, prompt: Sequence[int], start: int) -> torch.Tensor:
        """Read ``prompt[start:]`` into a slot that holds what comes before; logits [vocabulary] of what comes next."""
        for at in range(start, len(prompt), _PREFILL_TOKENS):
            logits = self._forward(slot, [prompt[at : at + _PREFILL_TOKENS]], [at], keep=1)
        return logits[-1]

    def extend(self, rows: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[torch.Tensor]:
        """Add tokens to the first slots, which hold ``lengths``; logits [tokens, vocabulary] after each, by row."""
        return list(torch.split(self._forward(0, rows, lengths, keep=0), [len(row) for row in rows]))

    def _forward(
        self, first: int, rows: Sequence[Sequence[int]], lengths: Sequence[int], *, keep: int
    ) -> torch.Tensor:
        """Logits [tokens, vocabulary] of the last ``keep`` tokens; 0: of all."""
        device = self._model.device
        layout = Layout(first, lengths, [len(row) for row in rows], device)
        for layer in self._cache.layers:
            layer.layout = layout
        output = self._model(
            input_ids=torch.tensor([[token for row in rows for token in row]], device=device),
            position_ids=layout.positions[None],
            **{self._cache_argument: self._cache},
            use_cache=True,
            layout=layout,
            **({"logits_to_keep": keep} if self._takes_logits_to_keep else {}),
        )
        self.windows = layout.windows
        logits: torch.Tensor = output.logits[0, -keep:]
        return logits

    def load(self, slot: int, pieces: Sequence[Piece]) -> int:
        """Put pieces that follow each other into a slot; returns how many tokens that were."""
        at, total = 0, sum(piece[0][0].shape[0] for piece in pieces)
        for piece in pieces:
            stop = at + piece[0][0].shape[0]
            for layer, (keys, values) in zip(self._layers, piece, strict=True):
                layer.reserve(slot + 1, total)
                layer.keys[slot, at:stop] = keys
                layer.values[slot, at:stop] = values
            at = stop
        return at

    def save(self, slot: int, start: int, stop: int) -> Piece:
        """A copy of the tokens ``start:stop`` of a slot."""
        return [
            (layer.keys[slot, start:stop].clone(), layer.values[slot, start:stop].clone())
            for layer in self._layers
        ]

    def move(self, slot: int, to: int, length: int) -> None:
        """Move the first ``length`` tokens of a slot to another."""
        for layer in self._layers:
            layer.keys[to, :length] = layer.keys[slot, :length]
            layer.values[to, :length] = layer.values[slot, :length]


def can_use_slots(model: Any) -> bool:
    """Whether a model keeps nothing but keys and values, and answers from slots as it does without any cache.

    It is tried out. The model's own attention is set again where the answer is no.
    """
    config, implementation = model.config.get_text_config(), model.config._attn_implementation
    expected = _windows(config)
    if expected is None:
        return False
    ids = [token % config.vocab_size for token in _PROBE]
    plain = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, 4:]
    try:
        slots = SlotModel(model)
        slots.read(1, ids[:9], 0)
        slots.read(0, ids[:4], 0)
        found, last = slots.extend([ids[4:], ids[9:]], [4, 9])
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        same = False
    else:
        off = max((found - plain).abs().max(), (last - plain[-1:]).abs().max())
        same = bool(off <= 0.05 * plain.abs().max()) and slots.windows == expected
    if not same:
        model.set_attn_implementation(implementation)
    return same


def _windows(config: Any) -> set[int | None] | None:
    """How far back the attention layers look (None: to the beginning); None where there are other layers."""
    window = getattr(config, "sliding_window", None) or None
    known = {"full_attention": None, "sliding_attention": window}
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    return {known[kind] for kind in kinds} if kinds <= known.keys() else None


def _grown(tensor: torch.Tensor, slots: int, tokens: int) -> torch.Tensor:
    new = tensor.new_zeros(slots, tokens, *tensor.shape[2:])  # zeros, for what is masked is still read
    new[: tensor.shape[0], : tensor.shape[1]] = tensor
    return new
