"""Attention for a ragged batch: rows of different lengths in one row of tokens, keys in KV cache slots.

Registered with transformers under the name ``kv_cache_slots``. Everything but the attention itself is computed on
real tokens only, however different the lengths of the rows are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from ..model.devices import uploaded

__all__ = ["ATTENTION", "RaggedBatch"]

ATTENTION = "kv_cache_slots"


class RaggedBatch:
    """The new tokens of one forward, concatenated row by row, and their slots and positions in the KV cache.

    ``first_slot``: slot of the first row; the other rows have the slots after it. ``cached``: for each row, the number
    of tokens that its slot holds already. ``new``: for each row, its new tokens. In shapes, ``tokens`` is the number of
    new tokens, ``longest`` the largest of a row, ``width`` the largest number of cached and new tokens of a row.
    ``calls``: how often attention was computed with it. ``ids``, ``row_of``, ``column_of``, ``positions`` and ``slots``
    [tokens]: of each token, its id, its row, its place among the row's new tokens and among all, and its slot.
    """

    def __init__(
        self, first_slot: int, cached: Sequence[int], new: Sequence[Sequence[int]], device: torch.device
    ) -> None:
        self.first_slot, self.rows, self.longest = first_slot, len(new), max(map(len, new))
        self.width = max(start + len(row) for start, row in zip(cached, new, strict=True))
        places = [(n, column) for n, row in enumerate(new) for column in range(len(row))]
        columns = [
            [token for row in new for token in row],
            [row for row, _ in places],
            [column for _, column in places],
            [cached[row] + column for row, column in places],
            [first_slot + row for row, _ in places],
        ]
        # One upload for all, since each is waited for.
        flat = uploaded([*(number for column in columns for number in column), *cached], device)
        parts = torch.split(flat, [len(places)] * len(columns) + [len(cached)])
        self.ids, self.row_of, self.column_of, self.positions, self.slots, self._cached = parts
        self._masks: dict[int | None, torch.Tensor] = {}
        self.calls = 0

    @property
    def windows(self) -> set[int | None]:
        """Sliding windows, in tokens, of the layers that have used this batch; None: full attention."""
        return set(self._masks)

    def padded(self, flat: torch.Tensor) -> torch.Tensor:
        """[1, heads, tokens, d] -> [rows, heads, longest, d], short rows padded at their end."""
        if self.rows == 1:
            return flat
        padded = flat.new_zeros(self.rows, self.longest, flat.shape[1], flat.shape[3])
        padded[self.row_of, self.column_of] = flat[0].transpose(0, 1)
        return padded.transpose(1, 2)

    def flat(self, padded: torch.Tensor) -> torch.Tensor:
        """[rows, heads, longest, d] -> [1, tokens, heads, d]"""
        return padded.transpose(1, 2)[self.row_of, self.column_of][None]

    def mask(self, window: int | None, groups: int, dtype: torch.dtype) -> torch.Tensor:
        """Additive attention mask, [rows, 1, groups * longest, width]; ``window`` as in ``windows``."""
        if window not in self._masks:
            queries = (
                self._cached[:, None, None] + torch.arange(self.longest, device=self._cached.device)[:, None]
            )
            keys = torch.arange(self.width, device=self._cached.device)
            hidden = keys > queries
            if window is not None:
                hidden |= keys <= queries - window
            added = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            added.masked_fill_(hidden, torch.finfo(dtype).min)
            self._masks[window] = added[:, None].repeat(1, 1, groups, 1)
        return self._masks[window]


def ragged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    layout: RaggedBatch | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """Query [1, heads, tokens, d], key and value [rows, kv_heads, width, d] -> [1, tokens, heads, d].

    ``layout`` comes through the model's keyword arguments. Raises TypeError for attention that this does not compute.
    Grouped-query attention copies no keys: the query heads of a group become more queries of its one key head.
    """
    if layout is None or attention_mask is not None or any(other.get(name) is not None for name in _UNKNOWN):
        raise TypeError(f"{type(module).__name__}: its attention cannot be computed from KV cache slots")
    layout.calls += 1
    rows, heads = layout.rows, query.shape[1]
    groups = heads // key.shape[1]
    folded = layout.padded(query).reshape(rows, key.shape[1], groups * layout.longest, query.shape[3])
    mask = layout.mask(sliding_window, groups, query.dtype)
    if softcap is None:
        attended = scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    else:
        attended = _softcapped_attention(folded, key, value, mask, scaling, softcap)
    return layout.flat(attended.reshape(rows, heads, layout.longest, value.shape[3])), None


_UNKNOWN = ("s_aux", "position_bias")  # attention sinks (gpt-oss) and relative position biases (T5)


def _softcapped_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    softcap: float,
) -> torch.Tensor:
    """Attention with soft-capped scores (Gemma 2): PyTorch's fused kernel has none.

    Query [rows, kv_heads, queries, d], key and value [rows, kv_heads, width, d], mask [rows, 1, queries, width]
    -> [rows, kv_heads, queries, d].
    """
    scores = query @ key.transpose(2, 3) * (query.shape[3] ** -0.5 if scaling is None else scaling)
    weights = torch.softmax((scores / softcap).tanh() * softcap + mask, dim=-1, dtype=torch.float32)
    return weights.to(query.dtype) @ value


AttentionInterface.register(ATTENTION, ragged_attention)
