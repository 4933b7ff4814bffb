"""Attention for prefix-tree packing, registered with transformers under the name ``prefix_tree``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.nn.attention.bias import causal_lower_right
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
    sliding_window: int | None = None,
    softcap: float | None = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """Attend each segment to its ancestors and, causally, to itself; with a window, to the nearest tokens of these.

    Query [1, heads, T, d], key and value [1, kv_heads, T, d] -> [1, T, heads, d], T: tokens of the flat row.
    ``segments`` is a keyword of the model's forward call that must reach this function; TypeError where the
    model does not pass it on, or passes a mask or what this does not compute.
    """
    if (
        segments is None
        or attention_mask is not None
        or any(other.get(name) is not None for name in _UNKNOWN)
    ):
        raise TypeError(f"{type(module).__name__} does not pass attention keywords on: it cannot be packed")
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    attend = partial(scaled_dot_product_attention, dropout_p=dropout)
    if softcap is not None:
        attend = partial(_softcapped_attention, softcap=softcap)
    pieces = [_attend(query, key, value, segment, sliding_window, scaling, attend) for segment in segments]
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous(), None


# Their kernels compute the attention to a path without its mask; a dense mask rules flash attention out.
_WITHOUT_MASK = {"cuda"}
_UNKNOWN = ("s_aux", "position_bias")  # attention sinks (gpt-oss) and relative position biases (T5)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segment: Segment,
    window: int | None,
    scaling: float | None,
    attend: partial[torch.Tensor],
) -> torch.Tensor:
    """One segment's attention [1, heads, segment tokens, d]; the spans of its path are its keys."""
    spans = (*segment.ancestors, (segment.start, segment.stop))
    own = query[:, :, segment.start : segment.stop]
    keys = torch.cat([key[:, :, a:b] for a, b in spans], dim=2)
    values = torch.cat([value[:, :, a:b] for a, b in spans], dim=2)
    length, seen = own.shape[2], keys.shape[2]
    if length == seen and (window is None or seen <= window):
        return attend(own, keys, values, is_causal=True, scale=scaling)
    if window is None and own.device.type in _WITHOUT_MASK and attend.func is scaled_dot_product_attention:
        return attend(own, keys, values, attn_mask=causal_lower_right(length, seen), scale=scaling)
    # [segment tokens, path tokens]: all ancestors, and the segment's own tokens up to the query's.
    mask = torch.ones(length, seen, dtype=torch.bool, device=own.device).tril(seen - length)
    if window is not None:
        mask = mask.triu(seen - length - window + 1)
    return attend(own, keys, values, attn_mask=mask, scale=scaling)


def _softcapped_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    softcap: float,
    scale: float | None,
    attn_mask: torch.Tensor | None = None,
    is_causal: bool = False,
) -> torch.Tensor:
    """As ``scaled_dot_product_attention``, with soft-capped scores (Gemma 2): PyTorch's fused kernel has none."""
    scores = query @ key.transpose(2, 3) * (query.shape[3] ** -0.5 if scale is None else scale)
    scores = (scores / softcap).tanh() * softcap
    if is_causal:
        attn_mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    return torch.softmax(scores.float(), dim=-1).to(query.dtype) @ value


AttentionInterface.register(PREFIX_TREE, prefix_tree_attention)
