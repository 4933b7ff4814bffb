"""Attention for a ragged batch: rows of different lengths in one row of tokens, keys in KV cache buffers.

Registered with transformers under the name ``kv_cache_slots``. Everything but the attention itself is computed on
real tokens only, however different the lengths of the rows are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from ..model.devices import uploaded

__all__ = ["ATTENTION", "NewTokens", "RaggedBatch", "RaggedLayout", "store"]

ATTENTION = "kv_cache_slots"


class NewTokens(NamedTuple):
    """New tokens of rows whose keys are side by side in one buffer.

    ``first``: place of the first row in the buffer; the other rows have the places after it. ``cached``: for each row,
    the number of its tokens that are there already. ``rows``: for each row, its new tokens. ``buffer``: which one.
    """

    first: int
    cached: Sequence[int]
    rows: Sequence[Sequence[int]]
    buffer: int = 0

    def columns(self) -> tuple[list[int], ...]:
        """Of each token, row by row: its id, its position in its row, its row, its place among the new tokens of it.

        And of each row, the number of cached tokens.
        """
        places = [(n, column) for n, row in enumerate(self.rows) for column in range(len(row))]
        return (
            [token for row in self.rows for token in row],
            [self.cached[row] + column for row, column in places],
            [row for row, _ in places],
            [column for _, column in places],
            [self.first + row for row, _ in places],
            list(self.cached),
        )


class RaggedBatch:
    """``NewTokens`` on a device, concatenated row by row.

    In shapes, ``tokens`` is the number of new tokens, ``longest`` the largest of a row, ``width`` the largest number of
    cached and new tokens of a row. ``positions``, ``row_of``, ``column_of`` and ``places`` [tokens]: of each token, its
    position in its row, its row, its place among the row's new tokens, and the row of the buffer that it is in.
    """

    def __init__(
        self,
        new: NewTokens,
        positions: torch.Tensor,
        row_of: torch.Tensor,
        column_of: torch.Tensor,
        places: torch.Tensor,
        cached: torch.Tensor,
    ) -> None:
        self.first, self.rows, self.buffer = new.first, len(new.rows), new.buffer
        self.tokens, self.longest = len(positions), max(map(len, new.rows))
        self.width = max(start + len(row) for start, row in zip(new.cached, new.rows, strict=True))
        self.positions, self.row_of, self.column_of, self.places = positions, row_of, column_of, places
        self._cached = cached
        self._masks: dict[int | None, torch.Tensor] = {}

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


class RaggedLayout:
    """The new tokens of one forward: those of each of ``NewTokens``, one after the other.

    ``ids`` and ``positions`` [tokens of all]: of each token, its id and its position in its row. ``calls``: how often
    attention was computed with it.
    """

    def __init__(self, new: Sequence[NewTokens], device: torch.device) -> None:
        # Of each kind of column, that of each batch.
        columns = list(zip(*(part.columns() for part in new), strict=True))
        # One upload for all, since each is waited for.
        self._flat = uploaded([number for kind in columns for part in kind for number in part], device)
        self.ids, self.positions, *_ = torch.split(self._flat, [sum(map(len, kind)) for kind in columns])
        self._new, self._sizes = new, [len(part) for kind in columns for part in kind]
        self._batches: dict[torch.device, list[RaggedBatch]] = {}
        self.calls = 0

    def batches(self, device: torch.device) -> list[RaggedBatch]:
        """``NewTokens`` on the device of a layer, where they are copied once."""
        if device not in self._batches:
            parts, count = torch.split(self._flat.to(device), self._sizes), len(self._new)
            self._batches[device] = [
                RaggedBatch(each, *parts[count + n :: count]) for n, each in enumerate(self._new)
            ]
        return self._batches[device]

    @property
    def windows(self) -> set[int | None]:
        """Sliding windows, in tokens, of the layers that have used this layout; None: full attention."""
        every = (batch.windows for batches in self._batches.values() for batch in batches)
        return set[int | None]().union(*every)

    def parts(self, flat: torch.Tensor) -> Sequence[torch.Tensor]:
        """[1, heads, tokens, d] -> that of each batch."""
        return torch.split(flat, self._sizes[: len(self._new)], dim=2)


def store(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """What a layer's cache returns to the model, for ``ragged_attention``: the keys, or values, of several batches."""
    first = parts[0].view(parts[0].shape)  # a tensor of its own, which nothing else names
    first.parts = parts  # type: ignore[attr-defined]
    return first


def ragged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    layout: RaggedLayout | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """Query [1, heads, tokens, d], key and value of each batch [rows, kv_heads, width, d] -> [1, tokens, heads, d].

    Key and value: as ``store`` made them, or as they are where there is one batch. ``layout`` comes through the model's
    keyword arguments. Raises TypeError for attention that this does not compute. Grouped-query attention copies no
    keys: the query heads of a group become more queries of its one key head.
    """
    if layout is None or attention_mask is not None or any(other.get(name) is not None for name in _UNKNOWN):
        raise TypeError(f"{type(module).__name__}: its attention cannot be computed from KV cache slots")
    layout.calls += 1
    batches = layout.batches(query.device)
    if len(batches) == 1:
        return _attention(batches[0], query, key, value, scaling, sliding_window, softcap), None
    keys, values = (getattr(stored, "parts", ()) for stored in (key, value))
    if not len(keys) == len(values) == len(batches):
        raise TypeError(f"{type(module).__name__}: changes the keys that the cache returns")
    attended = [
        _attention(batch, part, key, value, scaling, sliding_window, softcap)
        for batch, part, key, value in zip(batches, layout.parts(query), keys, values, strict=True)
    ]
    return torch.cat(attended, dim=1), None


def _attention(
    batch: RaggedBatch,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """Query [1, heads, tokens, d], key and value [rows, kv_heads, width, d] -> [1, tokens, heads, d]."""
    rows, heads = batch.rows, query.shape[1]
    groups = heads // key.shape[1]
    folded = batch.padded(query).reshape(rows, key.shape[1], groups * batch.longest, query.shape[3])
    mask = batch.mask(window, groups, query.dtype)
    if softcap is None:
        attended = scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    else:
        attended = _softcapped_attention(folded, key, value, mask, scaling, softcap)
    return batch.flat(attended.reshape(rows, heads, batch.longest, value.shape[3]))


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
