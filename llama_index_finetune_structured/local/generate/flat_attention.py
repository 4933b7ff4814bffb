"""Attention of rows that lie one after another in one flat row of tokens, over keys that each has in its slot.

Registered with transformers under the name ``slots``. All but the attention itself is then computed on real tokens
only, however unlike the rows are in length.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

__all__ = ["IMPLEMENTATION", "Layout"]

IMPLEMENTATION = "slots"


class Layout:
    """Where the tokens of one forward belong: the rows' slots, from ``first`` on, and the places in them.

    ``starts``: tokens that each slot holds already; ``counts``: new tokens of each.
    """

    def __init__(
        self, first: int, starts: Sequence[int], counts: Sequence[int], device: torch.device
    ) -> None:
        self.first, self.rows, self.longest = first, len(counts), max(counts)
        self.width = max(start + count for start, count in zip(starts, counts, strict=True))
        self._starts = torch.tensor(starts, device=device)
        self.row_of = torch.repeat_interleave(
            torch.arange(self.rows, device=device), torch.tensor(counts, device=device)
        )
        self.column_of = torch.cat([torch.arange(count, device=device) for count in counts])
        self._masks: dict[int | None, torch.Tensor] = {}

    @cached_property
    def positions(self) -> torch.Tensor:
        """[tokens]"""
        return self._starts[self.row_of] + self.column_of

    @property
    def windows(self) -> set[int | None]:
        """How far back the layers have looked so far; None: to the beginning."""
        return set(self._masks)

    def by_row(self, flat: torch.Tensor) -> torch.Tensor:
        """[1, heads, tokens, d] -> [rows, heads, longest, d], short rows padded at their end."""
        if self.rows == 1:
            return flat
        padded = flat.new_zeros(self.rows, self.longest, flat.shape[1], flat.shape[3])
        padded[self.row_of, self.column_of] = flat[0].transpose(0, 1)
        return padded.transpose(1, 2)

    def flat(self, by_row: torch.Tensor) -> torch.Tensor:
        """[rows, heads, longest, d] -> [1, tokens, heads, d]"""
        return by_row.transpose(1, 2)[self.row_of, self.column_of][None]

    def mask(self, window: int | None, groups: int, dtype: torch.dtype) -> torch.Tensor:
        """What is added to the scores, [rows, 1, groups * longest, width]."""
        if window not in self._masks:
            queries = (
                self._starts[:, None, None] + torch.arange(self.longest, device=self._starts.device)[:, None]
            )
            keys = torch.arange(self.width, device=self._starts.device)
            hidden = keys > queries
            if window is not None:
                hidden |= keys <= queries - window
            added = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            added.masked_fill_(hidden, torch.finfo(dtype).min)
            self._masks[window] = added[:, None].repeat(1, 1, groups, 1)
        return self._masks[window]


def slot_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    layout: Layout | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """Query [1, heads, tokens, d], key and value [rows, kv_heads, width, d] -> [1, tokens, heads, d].

    A group's query heads are read as more queries of its one key head: no key is copied.
    """
    if layout is None or attention_mask is not None or any(other.get(name) is not None for name in _UNKNOWN):
        raise TypeError(f"{type(module).__name__}: its attention cannot be computed from slots")
    rows, heads = layout.rows, query.shape[1]
    groups = heads // key.shape[1]
    folded = layout.by_row(query).reshape(rows, key.shape[1], groups * layout.longest, query.shape[3])
    mask = layout.mask(sliding_window, groups, query.dtype)
    if softcap is None:
        seen = scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    else:
        seen = _capped(folded, key, value, mask, scaling, softcap)
    return layout.flat(seen.reshape(rows, heads, layout.longest, value.shape[3])), None


_UNKNOWN = ("s_aux", "position_bias")


def _capped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    softcap: float,
) -> torch.Tensor:
    scores = query @ key.transpose(2, 3) * (query.shape[3] ** -0.5 if scaling is None else scaling)
    weights = torch.softmax((scores / softcap).tanh() * softcap + mask, dim=-1, dtype=torch.float32)
    return weights.to(query.dtype) @ value


AttentionInterface.register(IMPLEMENTATION, slot_attention)
