"""Rotary embeddings whose frequencies depend on the length of the sequence: longrope and dynamic NTK scaling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["forget_lengths", "most_positions_alike"]


def most_positions_alike(config: Any) -> int | None:
    """How long sequences can be that have the same frequencies; None where length does not matter.

    Above it, what is computed for a sequence differs by its length, and in one forward pass the longest decides for
    all.

    ``config``: of a transformers model.
    """
    text = config.get_text_config(decoder=True)
    lengths = [
        int(
            rope.get("original_max_position_embeddings")
            or getattr(text, "original_max_position_embeddings", None)
            or text.max_position_embeddings
        )
        for rope in _ropes(text)
        if rope.get("rope_type") in ("longrope", "dynamic")
    ]
    return min(lengths, default=None)


def forget_lengths(model: Any) -> None:
    """Make each forward pass start with the frequencies of short sequences.

    transformers' dynamic NTK scaling keeps those of the longest sequence so far, so that what is computed for one
    would depend on those before it.
    """
    for module in model.modules():
        if getattr(module, "rope_type", None) == "dynamic":
            module.register_forward_pre_hook(_forget_length)


def _forget_length(rope: Any, _inputs: Any) -> None:
    if rope.max_seq_len_cached > rope.original_max_seq_len:
        rope.register_buffer("inv_freq", rope.original_inv_freq.to(rope.inv_freq.device), persistent=False)
        rope.max_seq_len_cached = rope.original_max_seq_len


def _ropes(config: Any) -> Iterator[Mapping[str, Any]]:
    """The settings of the rotary embeddings, which some models have for each type of layer."""
    found = getattr(config, "rope_parameters", None) or {}
    yield found
    yield from (value for value in found.values() if isinstance(value, Mapping))
