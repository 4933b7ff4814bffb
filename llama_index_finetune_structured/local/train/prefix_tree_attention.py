"""Attention for prefix-tree packing, registered with transformers under the name ``prefix_tree``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from .packing import Segment

__all__ = ["PREFIX_TREE"]

PREFIX_TREE = "prefix_tree"


def prefix_tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    segments: Sequence[Segment] | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend each segment to its ancestors and, causally, to itself.

    Query [1, heads, T, d], key and value [1, kv_heads, T, d] -> [1, T, heads, d], T: tokens of the flat row.
    ``segments`` is a keyword of the model's forward call that must reach this function; TypeError where the
    model does not pass it on, or passes a mask.
    """
    if segments is None or attention_mask is not None:
        raise TypeError(f"{type(module).__name__} does not pass attention keywords on: it cannot be packed")
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    pieces = [_attend(query, key, value, segment, scaling, dropout) for segment in segments]
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous(), None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segment: Segment,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """One segment's attention [1, heads, segment tokens, d]; the spans of its path are its keys."""
    spans = (*segment.ancestors, (segment.start, segment.stop))
    own = query[:, :, segment.start : segment.stop]
    keys = torch.cat([key[:, :, a:b] for a, b in spans], dim=2)
    values = torch.cat([value[:, :, a:b] for a, b in spans], dim=2)
    length, seen = own.shape[2], keys.shape[2]
    if length == seen:
        return scaled_dot_product_attention(
            own, keys, values, is_causal=True, scale=scaling, dropout_p=dropout
        )
    # [segment tokens, path tokens]: all ancestors, and the segment's own tokens up to the query's.
    mask = torch.ones(length, seen, dtype=torch.bool, device=own.device).tril(seen - length)
    return scaled_dot_product_attention(own, keys, values, attn_mask=mask, scale=scaling, dropout_p=dropout)


AttentionInterface.register(PREFIX_TREE, prefix_tree_attention)
