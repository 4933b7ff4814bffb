"""Whether a model may be trained packed: by its structure, and by a small random copy of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.modules.conv import _ConvNd

from ..model.lora_targets import text_blocks
from ..model.prompts import TokenRow
from ..model.reading import fresh_model
from .packing import PackedBatch, pack
from .prefix_tree_attention import PREFIX_TREE

__all__ = ["why_not_packed"]

Logits = Callable[[Any, PackedBatch, bool], torch.Tensor]
"""Logits [answer tokens, vocabulary] of a model, for a batch that is packed or not."""

_PACKED_TYPES = {"full_attention", "sliding_attention", "attention"}
# The copy keeps what decides how tokens depend on each other, and the sizes that heads and widths are derived from.
_MOST = {
    "vocab_size": 64,
    "vocab_size_per_layer_input": 64,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "ffn_dim": 64,
    "n_inner": 64,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "sliding_window": 6,
    "window_size": 6,
}
_TOWER_LAYERS = ("depth", "num_hidden_layers", "encoder_layers", "num_layers")
_HEADS = 2  # of keys and values
_LAYERS = 2  # at least; more where the layers are of several types
_VOCABULARY = range(3, 60)
# Rows with nested prefixes, which are longer than the copy's window: one ends inside another's prompt.
_SHARED = tuple(_VOCABULARY)[:14]
_PROBE = [
    TokenRow((*_SHARED, 31, 32, 33, 34, 35), (40, 41, 42)),
    TokenRow((*_SHARED, 31, 32, 33, 36), (43, 40, 44, 45, 46, 47, 48, 49)),
    TokenRow((*_SHARED, 50), (51, 52)),
    TokenRow(_SHARED[:9], (53,)),
]
_TOLERANCE = (
    1e-4  # of the largest logit, in fp32; chosen: far above rounding, far below the effect of a wrong mask
)


def why_not_packed(model: Any, logits: Logits) -> str | None:
    """Why a transformers model's rows cannot share one forward pass; None where they can.

    The logits of packed rows must be those of plain ones in a copy of the model with few layers, a small vocabulary
    and short windows, whose random weights make each token depend on all that it attends to.
    """
    reason = _other_dependence(model)
    if reason is not None:
        return reason
    try:
        small = _small_copy(model)
        with torch.no_grad():
            plain = torch.cat([logits(small, pack([row]), False) for row in _PROBE])
            small.set_attn_implementation(PREFIX_TREE)
            packed = logits(small, pack(_PROBE, min_shared=1), True)
    except Exception as error:  # models reject keywords, attention functions or sizes with errors of any kind
        return f"{type(error).__name__}: {error}"
    difference = float((plain - packed).abs().max() / plain.abs().max())
    return None if difference <= _TOLERANCE else f"its packed logits are off by {difference:.1e}"


def _other_dependence(model: Any) -> str | None:
    """What else than attention to all earlier tokens, or to a window of them, connects the tokens of a row."""
    config = model.config.get_text_config()
    if other := sorted(set(getattr(config, "layer_types", None) or ()) - _PACKED_TYPES):
        return f"the model has layers of the type {other[0]}"
    _, blocks = text_blocks(model)
    modules = [module for block in blocks for module in block.modules()]
    if any(hasattr(module, "A_log") for module in modules):
        return "the model has state-space layers"
    if any(isinstance(module, _ConvNd) for module in modules):
        return "the model has convolutions"
    if getattr(config, "alibi", any("alibi" in name for name in dir(model.get_decoder()))):
        return "the model's attention is biased by distances (ALiBi)"
    return None


def _small_copy(model: Any) -> Any:
    """A model of the same class and kind on the CPU, with random weights in fp32."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    text = config.get_text_config()
    for part in _parts(config):
        _shrink(part)
        if part is not config and part is not text:
            _leave_one_layer(part)
    small = fresh_model(type(model), config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in small.parameters():
            if weight.dim() > 1:
                weight.normal_(0, weight.shape[-1] ** -0.5, generator=generator)
    return small.eval()


def _parts(config: Any) -> Iterator[Any]:
    """The config and those inside it."""
    yield config
    for value in list(vars(config).values()):
        if hasattr(value, "to_diff_dict"):
            yield from _parts(value)


def _shrink(config: Any) -> None:
    """Reduce a model config in place."""
    count = getattr(config, "num_hidden_layers", None)
    types = getattr(config, "layer_types", None) or []
    if isinstance(count, int):
        fewer = max([_LAYERS, *(types.index(kind) + 1 for kind in set(types))])
        if getattr(config, "num_kv_shared_layers", 0) and 2 * fewer < count:
            config.num_kv_shared_layers = fewer  # the upper half uses the keys and values of the lower
        fewer = min(count, 2 * fewer if getattr(config, "num_kv_shared_layers", 0) else fewer)
        for key, value in list(vars(config).items()):
            if isinstance(value, list) and len(value) == count:
                setattr(config, key, value[:fewer])
        config.num_hidden_layers = fewer
    for key, most in _MOST.items():
        value = getattr(config, key, None)
        if isinstance(value, int) and value > most:
            setattr(config, key, most)
        elif isinstance(value, list):  # by layer
            setattr(config, key, [min(most, number) for number in value])
    if (getattr(config, "pad_token_id", None) or 0) >= _MOST["vocab_size"]:
        config.pad_token_id = 0
    if not getattr(config, "is_heterogeneous", False):  # else layers have heads of their own
        _reduce_heads(config)


def _leave_one_layer(config: Any) -> None:
    """Reduce the config of a tower for images or sound, which no text runs through, in place."""
    for key in _TOWER_LAYERS:
        if getattr(config, key, 0):
            setattr(config, key, 1)


def _reduce_heads(config: Any) -> None:
    """Reduce the heads in place, and not how many of them share keys and values."""
    heads = getattr(config, "num_attention_heads", None)
    shared = getattr(config, "num_key_value_heads", None)
    if heads and shared and shared > _HEADS and heads % shared == 0 and getattr(config, "head_dim", None):
        config.num_attention_heads, config.num_key_value_heads = heads // shared * _HEADS, _HEADS
