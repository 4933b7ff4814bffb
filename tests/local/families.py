"""Tiny, randomly initialised models of many families: each with the parts that make the family what it is."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

_GENERIC: dict[str, Any] = {
    "vocab_size": 258,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
}
_LATENT: dict[str, Any] = {  # DeepSeek's attention
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 8,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
}
_MIXED = {"layer_types": ["linear_attention", "full_attention"]}
_DELTA: dict[str, Any] = {  # gated delta rule beside attention
    **_MIXED,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_STATE: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_expand": 2}
_OWN: dict[str, dict[str, Any]] = {
    "bamba": {**_STATE, "attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 8},
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "exaone4": {"sliding_window": 16, "sliding_window_pattern": 2},
    "falcon_h1": {**_STATE, "mamba_d_ssm": 64, "mamba_n_groups": 1},
    "gemma2": {"sliding_window": 16, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "glm4_moe_lite": _LATENT,
    "gpt_neo": {
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 16,
    },
    "gpt_oss": {"sliding_window": 16},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {**_STATE, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 32},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "llama4_text": {"attention_chunk_size": 16, "intermediate_size_mlp": 64, "layer_types": ["chunked_attention", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1},
    "minicpm3": {**_LATENT, "dim_model_base": 32},
    "ministral": {"sliding_window": 16},
    "mistral": {"sliding_window": 16},
    "olmo3": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {"sliding_window": 16},
    "qwen3_5_text": _DELTA,
    "qwen3_5_moe_text": _DELTA,
    "qwen3_next": _DELTA,
    "starcoder2": {"sliding_window": 16},
    "youtu": _LATENT,
}


def config(family: str) -> Any:
    own = _OWN.get(family, {})
    default = AutoConfig.for_model(family)
    generic = {key: value for key, value in _GENERIC.items() if hasattr(default, key)}
    if family == "falcon":
        del generic["head_dim"]
    return AutoConfig.for_model(family, **{**generic, **own})


def model(family: str, *, seed: int = 0) -> Any:
    """Weights that are far larger than those of training's start, so that each token depends on all before it."""
    torch.manual_seed(seed)
    found = AutoModelForCausalLM.from_config(config(family)).float().eval()
    return found
