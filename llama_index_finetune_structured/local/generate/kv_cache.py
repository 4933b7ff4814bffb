"""KV cache with one slot for each sequence of a batch.

A sequence's tokens stand at their own positions from 0 in its slot, so a sequence can join, leave, or take back its
last tokens while the others go on, and no padding is stored.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ..model.rope import most_positions_alike
from .ragged_attention import ATTENTION, RaggedBatch

__all__ = ["KVCacheModel", "KeyValues", "supports_kv_cache_slots"]

_PREFILL_TOKENS = (
    512  # tokens of a prompt a forward; chosen: bounds the memory of a long prompt's activations
)
_PREFILL_TOKENS_OF_GPU = 2048  # chosen: a small model's 512 tokens take less time than starting their kernels
_SPARE_TOKENS = (
    128  # room beyond what is needed when the buffers grow; chosen: few reallocations of short answers
)
_PROBE = [7, 3, 5, 11, 2, 13, 4, 6, 9, 8]  # token ids of the check; arbitrary, different from each other
_PROBE_TOLERANCE = (
    0.05  # of the largest logit; chosen: rounding of bf16 passes, a wrong mask or position does not
)

# Keys and values, each [tokens, kv_heads, head_dim], of consecutive tokens: one pair for each layer.
KeyValues = list[tuple[torch.Tensor, torch.Tensor]]

_Layer: Any = DynamicLayer  # its annotations allow no keys before the first forward, which mypy rejects below


class _SlotLayer(_Layer):  # type: ignore[misc]
    """One layer's buffers, [slots, capacity, kv_heads, head_dim]; ``layout`` is set before each forward."""

    layout: RaggedBatch
    is_initialized: bool
    keys: torch.Tensor
    values: torch.Tensor

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make empty buffers for keys and values like these, [1, kv_heads, tokens, head_dim]."""
        super().lazy_initialization(key_states, value_states)
        self.keys, self.values = (
            new.new_zeros(0, 0, new.shape[1], new.shape[3]) for new in (key_states, value_states)
        )

    def reserve(self, slots: int, tokens: int) -> None:
        """Grow the buffers to at least so many slots and tokens a slot; the content stays."""
        had_slots, had_tokens = self.keys.shape[:2]
        if slots > had_slots or tokens > had_tokens:
            slots = had_slots if slots <= had_slots else max(slots, 2 * had_slots)
            tokens = had_tokens if tokens <= had_tokens else tokens + tokens // 4 + _SPARE_TOKENS
            self.keys, self.values = _grown(self.keys, slots, tokens), _grown(self.values, slots, tokens)

    def release(self) -> None:
        """Free the buffers."""
        if self.is_initialized:
            self.keys, self.values = self.keys[:0, :0].clone(), self.values[:0, :0].clone()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new keys and values, each [1, kv_heads, tokens, head_dim], to the slots of ``layout``.

        Returns all keys and values of its rows, cached and new, each [rows, kv_heads, width, head_dim].
        """
        batch = self.layout
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.reserve(batch.first_slot + batch.rows, batch.width)
        self.keys[batch.slots, batch.positions] = key_states[0].transpose(0, 1)
        self.values[batch.slots, batch.positions] = value_states[0].transpose(0, 1)
        rows = slice(batch.first_slot, batch.first_slot + batch.rows)
        keys, values = self.keys[rows, : batch.width], self.values[rows, : batch.width]
        return keys.transpose(1, 2), values.transpose(1, 2)

    def get_seq_length(self) -> int:
        """Always 0: every forward is given its positions, so transformers need not derive them from this."""
        return 0


class KVCacheModel:
    """A causal LM with a KV cache of slots. Sets the model's attention to ``ragged_attention``."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.windows: set[int | None] = set()  # of the last forward, see RaggedBatch
        self.calls = 0
        model.set_attn_implementation(ATTENTION)
        parameters = inspect.signature(model.forward).parameters
        self._takes_logits_to_keep = "logits_to_keep" in parameters
        # transformers renamed the argument in 5.24; the old name warns there and is gone in 5.40.
        self._cache_argument = "cache" if "cache" in parameters else "past_key_values"
        self._cache: Any = DynamicCache(config=model.config)
        self.reset()

    def reset(self) -> None:
        """Start with new buffers, whatever state those of now are in."""
        self._cache.layers = [_SlotLayer() for _ in self._cache.layers]

    def release(self) -> None:
        """Drop all sequences and free their memory."""
        for layer in self._layers:
            layer.release()

    @property
    def _layers(self) -> list[_SlotLayer]:
        """The layers with keys of their own: in some models, layers share them."""
        return [layer for layer in self._cache.layers if layer.is_initialized]

    def prefill(self, slot: int, prompt: Sequence[int], start: int) -> torch.Tensor:
        """Compute ``prompt[start:]`` in a slot that holds ``prompt[:start]``; logits [vocabulary] of the next token."""
        size = _PREFILL_TOKENS if self._model.device.type == "cpu" else _PREFILL_TOKENS_OF_GPU
        for position in range(start, len(prompt), size):
            chunk = prompt[position : position + size]
            logits = self._forward(slot, [chunk], [position], last_only=True)
        return logits[-1]

    def extend(self, rows: Sequence[Sequence[int]], lengths: Sequence[int]) -> torch.Tensor:
        """Append tokens to the slots 0, 1, 2, ..., which hold ``lengths`` tokens.

        Returns the logits after each new token, [new tokens of all rows, vocabulary].
        """
        return self._forward(0, rows, lengths, last_only=False)

    def _forward(
        self, first_slot: int, rows: Sequence[Sequence[int]], lengths: Sequence[int], *, last_only: bool
    ) -> torch.Tensor:
        """Logits [new tokens of all rows, vocabulary]; with ``last_only``, of the last token, [1, vocabulary]."""
        device = self._model.device
        layout = RaggedBatch(first_slot, lengths, rows, device)
        for layer in self._cache.layers:
            layer.layout = layout
        output = self._model(
            input_ids=layout.ids[None],
            position_ids=layout.positions[None],
            **{self._cache_argument: self._cache},
            use_cache=True,
            layout=layout,
            # transformers keeps the logits of so many last tokens; 0 means all
            **({"logits_to_keep": 1 if last_only else 0} if self._takes_logits_to_keep else {}),
        )
        self.windows, self.calls = layout.windows, layout.calls
        logits: torch.Tensor = output.logits[0]
        return logits[-1:] if last_only else logits

    def load(self, slot: int, parts: Sequence[KeyValues]) -> int:
        """Copy consecutive keys and values to the beginning of a slot; returns their number of tokens."""
        start, total = 0, sum(part[0][0].shape[0] for part in parts)
        for part in parts:
            stop = start + part[0][0].shape[0]
            for layer, (keys, values) in zip(self._layers, part, strict=True):
                layer.reserve(slot + 1, total)
                layer.keys[slot, start:stop] = keys
                layer.values[slot, start:stop] = values
            start = stop
        return start

    def save(self, slot: int, start: int, stop: int) -> KeyValues:
        """A copy of the keys and values of the tokens ``start:stop`` of a slot."""
        return [
            (layer.keys[slot, start:stop].clone(), layer.values[slot, start:stop].clone())
            for layer in self._layers
        ]

    def erase(self, slot: int, start: int = 0) -> None:
        """Set a slot's keys and values from position ``start`` to zero.

        Masked values are still multiplied, and 0 * NaN is NaN: NaN would spread to whatever uses the slot next.
        """
        for layer in self._layers:
            if slot < layer.keys.shape[0]:
                layer.keys[slot, start:] = 0
                layer.values[slot, start:] = 0

    def move(self, slot: int, to: int, length: int) -> None:
        """Copy the first ``length`` tokens of a slot to another."""
        for layer in self._layers:
            layer.keys[to, :length] = layer.keys[slot, :length]
            layer.values[to, :length] = layer.values[slot, :length]


def supports_kv_cache_slots(model: Any) -> bool:
    """Whether a model has no state but keys and values, and computes the same from slots as without a cache.

    Not where positions are computed from the length of the sequence: keys in a slot would be of another length.

    Decided by running a short prompt both ways. If not, the model's own attention is set again.
    """
    config, implementation = model.config.get_text_config(), model.config._attn_implementation
    expected_windows = _windows(config)
    if expected_windows is None or most_positions_alike(config) is not None:
        return False
    ids = [token % config.vocab_size for token in _PROBE]
    plain = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, 4:]
    try:
        slots = KVCacheModel(model)
        slots.prefill(1, ids[:9], 0)
        slots.prefill(0, ids[:4], 0)
        first, second = torch.split(slots.extend([ids[4:], ids[9:]], [4, 9]), [6, 1])
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        same = False
    else:
        difference = max((first - plain).abs().max(), (second - plain[-1:]).abs().max())
        close = bool(difference <= _PROBE_TOLERANCE * plain.abs().max())
        # The probe is shorter than most sliding windows, so whether the layers pass theirs on is checked apart.
        # Layers that run several times in a forward would find keys of another round in their slots.
        same = close and slots.windows == expected_windows and slots.calls <= config.num_hidden_layers
    if not same:
        model.set_attn_implementation(implementation)
    return same


def _windows(config: Any) -> set[int | None] | None:
    """Sliding windows of a model's attention layers (None: full attention); None if it has layers of another type."""
    window = getattr(config, "sliding_window", None) or None
    known = {"full_attention": None, "sliding_attention": window}
    layer_types = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    return {known[name] for name in layer_types} if layer_types <= known.keys() else None


def _grown(tensor: torch.Tensor, slots: int, tokens: int) -> torch.Tensor:
    """[slots, tokens, kv_heads, head_dim] with room for more slots and tokens."""
    # Zeros, not uninitialised memory: masked values are still multiplied, and 0 * NaN is NaN.
    new = tensor.new_zeros(slots, tokens, *tensor.shape[2:])
    new[: tensor.shape[0], : tensor.shape[1]] = tensor
    return new
