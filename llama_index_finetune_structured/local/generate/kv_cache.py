"""KV cache with one slot for each sequence of a batch.

A sequence's tokens stand at their own positions from 0 in its slot, so a sequence can join, leave, or take back its
last tokens while the others go on. Slots of about the same length share a buffer, which is as wide as its longest: one
long sequence does not make the others' slots long, nor their attention.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ..model.adapter_weights import AdapterWeights
from ..model.rope import most_positions_alike
from .adapter_layers import AdapterLayers
from .ragged_attention import ATTENTION, NewTokens, RaggedBatch, RaggedLayout, store

__all__ = ["KVCacheModel", "KeyValues", "supports_kv_cache_slots"]

_PREFILL_TOKENS = (
    512  # tokens of a prompt a forward; chosen: bounds the memory of a long prompt's activations
)
_PREFILL_TOKENS_OF_GPU = 2048  # chosen: a small model's 512 tokens take less time than starting their kernels
_SPARE_TOKENS = (
    128  # room beyond what is needed when the buffers grow; chosen: few reallocations of short answers
)
# Most tokens of a slot in the first buffer, and how many times as many in the next (chosen: attention is computed for
# each buffer in use).
_SHORT_TOKENS, _STEP = 512, 4
_PROBE = [7, 3, 5, 11, 2, 13, 4, 6, 9, 8]  # token ids of the check; arbitrary, different from each other
_PROBE_TOLERANCE = (
    0.05  # of the largest logit; chosen: rounding of bf16 passes, a wrong mask or position does not
)

# Keys and values, each [tokens, kv_heads, head_dim], of consecutive tokens: one pair for each layer.
KeyValues = list[tuple[torch.Tensor, torch.Tensor]]

_Layer: Any = DynamicLayer  # its annotations allow no keys before the first forward, which mypy rejects below


class _SlotLayer(_Layer):  # type: ignore[misc]
    """One layer's buffers, each [rows, capacity, kv_heads, head_dim]; ``layout`` is set before each forward."""

    layout: RaggedLayout
    is_initialized: bool
    _empty: tuple[torch.Tensor, torch.Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.buffers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Learn the sizes of keys and values like these, [1, kv_heads, tokens, head_dim]."""
        super().lazy_initialization(key_states, value_states)
        keys, values = (new.new_zeros(0, 0, new.shape[1], new.shape[3]) for new in (key_states, value_states))
        self._empty = keys, values

    def reserve(self, buffer: int, rows: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Grow a buffer to at least so many rows and tokens a row; the content stays. Returns keys and values."""
        keys, values = self.buffers.get(buffer, self._empty)
        had_rows, had_tokens = keys.shape[:2]
        if rows > had_rows or tokens > had_tokens:
            rows = had_rows if rows <= had_rows else max(rows, 2 * had_rows)
            tokens = had_tokens if tokens <= had_tokens else tokens + tokens // 4 + _SPARE_TOKENS
            keys, values = _grown(keys, rows, tokens), _grown(values, rows, tokens)
            self.buffers[buffer] = keys, values
        return keys, values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new keys and values, each [1, kv_heads, tokens, head_dim], to the places of ``layout``.

        Returns all keys and values of its rows, cached and new, of each batch [rows, kv_heads, width, head_dim].
        """
        layout, batches = self.layout, self.layout.batches(key_states.device)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if len(batches) == 1:
            return self._written(batches[0], key_states, value_states)
        stored = [
            self._written(batch, *new)
            for batch, *new in zip(batches, layout.parts(key_states), layout.parts(value_states), strict=True)
        ]
        return store([keys for keys, _ in stored]), store([values for _, values in stored])

    def _written(
        self, batch: RaggedBatch, key_states: torch.Tensor, value_states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self.reserve(batch.buffer, batch.first + batch.rows, batch.width)
        keys[batch.places, batch.positions] = key_states[0].transpose(0, 1)
        values[batch.places, batch.positions] = value_states[0].transpose(0, 1)
        rows = slice(batch.first, batch.first + batch.rows)
        return keys[rows, : batch.width].transpose(1, 2), values[rows, : batch.width].transpose(1, 2)

    def get_seq_length(self) -> int:
        """Always 0: every forward is given its positions, so transformers need not derive them from this."""
        return 0


class KVCacheModel:
    """A causal LM with a KV cache of slots. Sets the model's attention to ``ragged_attention``.

    ``short_tokens``: most tokens of a slot in the first buffer.
    """

    def __init__(self, model: Any, short_tokens: int = _SHORT_TOKENS) -> None:
        self._model, self._short_tokens = model, short_tokens
        self._adapters = AdapterLayers(model)
        self.windows: set[int | None] = set()  # of the last forward, see RaggedLayout
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
        self._slots: dict[int, list[int]] = {}  # of each buffer, the slots that its rows hold
        self._adapters.use([])

    def release(self) -> None:
        """Drop all sequences and free their memory."""
        self._slots = {}
        self._adapters.use([])
        for layer in self._layers:
            layer.buffers.clear()

    @property
    def _layers(self) -> list[_SlotLayer]:
        """The layers with keys of their own: in some models, layers share them."""
        return [layer for layer in self._cache.layers if layer.is_initialized]

    def prefill(
        self, slot: int, prompt: Sequence[int], start: int, adapter: AdapterWeights | None = None
    ) -> torch.Tensor:
        """Compute ``prompt[start:]`` in a slot that holds ``prompt[:start]``; logits [vocabulary] of the next token."""
        self._adapters.use([(adapter, len(prompt) - start)])
        buffer, row = self._place(slot, len(prompt), start)
        size = _PREFILL_TOKENS if self._model.device.type == "cpu" else _PREFILL_TOKENS_OF_GPU
        for position in range(start, len(prompt), size):
            chunk = NewTokens(row, [position], [prompt[position : position + size]], buffer)
            logits = self._forward([chunk], last_only=True)
        return logits[-1]

    def extend(
        self,
        rows: Sequence[Sequence[int]],
        lengths: Sequence[int],
        adapters: Sequence[AdapterWeights | None] | None = None,
    ) -> tuple[torch.Tensor, list[int]]:
        """Append tokens to the slots 0, 1, 2, ..., which hold ``lengths`` tokens, and free all others.

        ``adapters``: of the slots; None: all have the base alone. Returns the logits after each new token, [new tokens
        of all rows, vocabulary], and the slots in their order.
        """
        self._free(len(rows))
        for slot, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            self._place(slot, length + len(row), length)
        new = [
            NewTokens(0, [lengths[slot] for slot in slots], [rows[slot] for slot in slots], buffer)
            for buffer, slots in self._slots.items()
        ]
        order = [slot for slots in self._slots.values() for slot in slots]
        self._adapters.use([] if adapters is None else [(adapters[slot], len(rows[slot])) for slot in order])
        return self._forward(new, last_only=False), order

    def _forward(self, new: Sequence[NewTokens], *, last_only: bool) -> torch.Tensor:
        """Logits [new tokens of all rows, vocabulary]; with ``last_only``, of the last token, [1, vocabulary]."""
        layout = RaggedLayout(new, self._model.device)
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
        """Begin a slot, the last one, with consecutive keys and values; returns their number of tokens."""
        self._free(slot)
        start, total = 0, sum(part[0][0].shape[0] for part in parts)
        if not total:
            return 0
        buffer, row = self._place(slot, total, 0)
        for part in parts:
            stop = start + part[0][0].shape[0]
            for layer, new in zip(self._layers, part, strict=True):
                for stored, values in zip(layer.reserve(buffer, row + 1, total), new, strict=True):
                    stored[row, start:stop] = values
            start = stop
        return start

    def save(self, slot: int, start: int, stop: int) -> KeyValues:
        """A copy of the keys and values of the tokens ``start:stop`` of a slot."""
        buffer, row = self._found(slot)
        return [
            (keys[row, start:stop].clone(), values[row, start:stop].clone())
            for keys, values in (layer.buffers[buffer] for layer in self._layers)
        ]

    def erase(self, slot: int, start: int = 0) -> None:
        """Set a slot's keys and values from position ``start`` to zero.

        Masked values are still multiplied, and 0 * NaN is NaN: NaN would spread to whatever uses the slot next.
        """
        if not any(slot in slots for slots in self._slots.values()):
            return
        buffer, row = self._found(slot)
        for layer in self._layers:
            for stored in layer.buffers.get(buffer, ()):
                stored[row : row + 1, start:] = 0  # none, where the forward failed before it was made

    def move(self, slot: int, to: int) -> None:
        """Let the last slot take the place of another."""
        self._remove(*self._found(to))
        buffer, row = self._found(slot)
        self._slots[buffer][row] = to

    def _found(self, slot: int) -> tuple[int, int]:
        """Buffer and row of a slot."""
        return next((buffer, slots.index(slot)) for buffer, slots in self._slots.items() if slot in slots)

    def _place(self, slot: int, tokens: int, length: int) -> tuple[int, int]:
        """Buffer and row of a slot that holds ``length`` tokens, in a buffer for ``tokens`` of them."""
        old = self._found(slot) if any(slot in slots for slots in self._slots.values()) else None
        wanted, most = 0, self._short_tokens
        while most < tokens:
            wanted, most = wanted + 1, most * _STEP
        if old is not None and old[0] >= wanted:
            return old
        slots = self._slots.setdefault(wanted, [])
        if old is not None:
            for layer in self._layers:
                new = layer.reserve(wanted, len(slots) + 1, tokens)
                for stored, values in zip(new, layer.buffers[old[0]], strict=True):
                    stored[len(slots), :length] = values[old[1], :length]
            self._remove(*old)
        slots.append(slot)
        return wanted, len(slots) - 1

    def _free(self, first: int) -> None:
        """Remove the slots from ``first`` on."""
        for slot in [slot for slots in self._slots.values() for slot in slots if slot >= first]:
            self._remove(*self._found(slot))

    def _remove(self, buffer: int, row: int) -> None:
        """Remove a row of a buffer, and fill its place from the end: the rows of a forward stand side by side."""
        slots = self._slots[buffer]
        last = len(slots) - 1
        if row < last:
            for layer in self._layers:
                for stored in layer.buffers[buffer]:
                    stored[row] = stored[last]
        slots[row] = slots[last]
        slots.pop()
        if not slots:
            del self._slots[buffer]
            if buffer:  # the first one is small, and soon in use again
                for layer in self._layers:
                    layer.buffers.pop(buffer, None)


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
        slots = KVCacheModel(model, short_tokens=8)  # the rows have different buffers
        slots.prefill(1, ids[:9], 0)
        slots.prefill(0, ids[:4], 0)
        new = [ids[4:8], ids[9:]]
        logits, order = slots.extend(new, [4, 9])
        parts = torch.split(logits, [len(new[slot]) for slot in order])
        found = dict(zip(order, parts, strict=True))
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        same = False
    else:
        difference = max((found[0] - plain[:4]).abs().max(), (found[1] - plain[-1:]).abs().max())
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
