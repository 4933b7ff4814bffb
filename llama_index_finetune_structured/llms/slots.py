"""Keys and values of the rows that are being answered, each row in a slot of one buffer a layer.

A row's tokens stand at their own positions from 0, so a row can join, leave, or take back its last tokens while
the others go on, and no padding is ever kept. Which keys a query sees is said by the attention mask alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

__all__ = ["Piece", "SlotModel", "can_use_slots"]

_IMPLEMENTATION = "grouped_sdpa"
_FOLDED_QUERIES = 32
_PREFILL_TOKENS = 1024
_SPARE_TOKENS = 128
_PROBE = [7, 3, 5, 11, 2, 13, 4, 6, 9, 8]

# Keys and values [tokens, kv_heads, head_dim] of a run of tokens, for every layer.
Piece = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class _Place:
    """Where a forward writes: the slots ``first:stop``, for each of them the position of its first token."""

    first: int
    starts: torch.Tensor
    tokens: int
    width: int

    @property
    def stop(self) -> int:
        return self.first + len(self.starts)

    @property
    def positions(self) -> torch.Tensor:
        """[rows, tokens]"""
        return self.starts[:, None] + torch.arange(self.tokens, device=self.starts.device)


class _SlotLayer(DynamicLayer):
    """One layer's buffers, [slots, capacity, kv_heads, head_dim]; ``place`` is set before each forward."""

    place: _Place

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
        at = self.place
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.reserve(at.stop, at.width)
        rows, positions = torch.arange(at.first, at.stop, device=key_states.device)[:, None], at.positions
        self.keys[rows, positions] = key_states.transpose(1, 2)
        self.values[rows, positions] = value_states.transpose(1, 2)
        return (
            self.keys[at.first : at.stop, : at.width].transpose(1, 2),
            self.values[at.first : at.stop, : at.width].transpose(1, 2),
        )

    def get_seq_length(self) -> int:
        return self.place.width - self.place.tokens


class SlotModel:
    """A causal LM whose rows live in slots."""

    def __init__(self, model: Any, pad_id: int) -> None:
        self._model, self._pad_id = model, pad_id
        self._accepts_logits_to_keep = "logits_to_keep" in inspect.signature(model.forward).parameters
        if getattr(model.config, "_attn_implementation", None) == "sdpa":
            model.set_attn_implementation(_IMPLEMENTATION)
        config = model.config.get_text_config()
        self._windows = _windows(config)
        self._cache = DynamicCache(config=model.config)
        self._cache.layers = [_SlotLayer() for _ in self._cache.layers]

    def release(self) -> None:
        """Forget all rows and give their memory back."""
        for layer in self._cache.layers:
            layer.release()

    @property
    def _layers(self) -> list[_SlotLayer]:
        """The layers that have keys of their own: some models share them between layers."""
        return [layer for layer in self._cache.layers if layer.is_initialized]

    def read(self, slot: int, prompt: Sequence[int], start: int) -> torch.Tensor:
        """Read ``prompt[start:]`` into a slot that holds what comes before; logits [vocabulary] of what comes next."""
        for at in range(start, len(prompt), _PREFILL_TOKENS):
            logits = self.forward(slot, [prompt[at : at + _PREFILL_TOKENS]], [at], keep=1)
        return logits[0, -1]

    def forward(
        self, first_slot: int, rows: Sequence[Sequence[int]], lengths: Sequence[int], keep: int = 0
    ) -> torch.Tensor:
        """Logits [rows, tokens, vocabulary] after each new token of the slots from ``first_slot`` on.

        ``lengths``: tokens that each slot holds already. ``keep``: logits of the last so many tokens; 0: of all.
        """
        device, tokens = self._model.device, max(map(len, rows))
        place = _Place(first_slot, torch.tensor(lengths, device=device), tokens, width=max(lengths) + tokens)
        for layer in self._cache.layers:
            layer.place = place
        padded = [[*row, *[self._pad_id] * (tokens - len(row))] for row in rows]
        ends = place.starts + torch.tensor([len(row) - 1 for row in rows], device=device)
        output = self._model(
            input_ids=torch.tensor(padded, device=device),
            attention_mask=self._mask(place),
            position_ids=place.positions.minimum(ends[:, None]),
            past_key_values=self._cache,
            use_cache=True,
            **({"logits_to_keep": keep} if self._accepts_logits_to_keep else {}),
        )
        logits: torch.Tensor = output.logits
        return logits[:, -keep:]

    def load(self, slot: int, pieces: Sequence[Piece]) -> int:
        """Put pieces that follow each other into a slot; returns how many tokens that were."""
        at = 0
        total = sum(piece[0][0].shape[0] for piece in pieces)
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

    def _mask(self, place: _Place) -> Any:
        """Added to the attention scores, [rows, 1, tokens, width]; by kind of layer where a model mixes kinds."""
        masks = {kind: _mask(place, window, self._model.dtype) for kind, window in self._windows.items()}
        return masks if len(masks) > 1 else next(iter(masks.values()))


def can_use_slots(model: Any) -> bool:
    """Whether a model keeps nothing but keys and values, and answers from slots as it does without any cache."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if not kinds <= {"full_attention", "sliding_attention"} or not _takes_positions(model):
        return False
    ids = [token % config.vocab_size for token in _PROBE]
    plain = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, 4:]
    implementation = model.config._attn_implementation
    slots = SlotModel(model, pad_id=0)
    try:
        slots.read(1, ids, 0)
        slots.forward(0, [ids[:4]], [0])
        found = slots.forward(0, [ids[4:], ids[9:]], [4, 9])[0]
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        found = torch.full_like(plain, torch.nan)
    same = bool((found - plain).abs().max() <= 0.05 * plain.abs().max())
    if not same:
        model.set_attn_implementation(implementation)
    return same


def _takes_positions(model: Any) -> bool:
    return {"position_ids", "past_key_values"} <= set(inspect.signature(model.forward).parameters)


def _windows(config: Any) -> dict[str, int | None]:
    """Kinds of attention layers and how far back each sees; None: to the beginning."""
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds:
        return {"sliding_attention" if window else "full_attention": window}
    return {kind: window if kind == "sliding_attention" else None for kind in sorted(kinds)}


def _mask(place: _Place, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    keys, queries = torch.arange(place.width, device=place.starts.device), place.positions[:, :, None]
    hidden = keys > queries
    if window is not None:
        hidden |= keys <= queries - window
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(
        hidden, torch.finfo(dtype).min
    )[:, None]


def _grown(tensor: torch.Tensor, slots: int, tokens: int) -> torch.Tensor:
    new = tensor.new_zeros(slots, tokens, *tensor.shape[2:])  # zeros, for what is masked is still read
    new[: tensor.shape[0], : tensor.shape[1]] = tensor
    return new


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """SDPA without a copy of the keys for each query head: a group's heads are read as more queries.

    Query [rows, heads, tokens, d], key and value [rows, kv_heads, width, d] -> [rows, tokens, heads, d].
    """
    rows, heads, tokens, size = query.shape
    groups = heads // key.shape[1]
    if attention_mask is None or groups == 1 or tokens > _FOLDED_QUERIES:
        output: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return output
    folded = query.reshape(rows, heads // groups, groups * tokens, size)
    mask = attention_mask.repeat(1, 1, groups, 1)
    seen = torch.nn.functional.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    return seen.reshape(rows, heads, tokens, size).transpose(1, 2).contiguous(), None


AttentionInterface.register(_IMPLEMENTATION, grouped_attention)
