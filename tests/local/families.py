"""Tiny, randomly initialised models of many families: each with the parts that make the family what it is.

Those that read images or sound have towers of one layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
)

from tests import tiny

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
_SHARED_KEYS: dict[str, Any] = {  # upper layers use the keys and values of lower ones
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
_OWN: dict[str, dict[str, Any]] = {
    "bamba": {**_STATE, "attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 8},
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "exaone4": {"sliding_window": 16, "sliding_window_pattern": 2},
    "dots1": {**_GENERIC, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "falcon_h1": {**_STATE, "mamba_d_ssm": 64, "mamba_n_groups": 1},
    "gemma2": {"sliding_window": 16, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "gemma3n_text": {
        **_SHARED_KEYS,
        "vocab_size_per_layer_input": 258,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.9, 0.0, 0.0, 0.0],
    },
    "gemma4_text": {
        **_SHARED_KEYS,
        "vocab_size_per_layer_input": 258,
        "hidden_size_per_layer_input": 8,
        "global_head_dim": 16,
    },
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
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "llama4_text": {
        "attention_chunk_size": 16,
        "intermediate_size_mlp": 64,
        "layer_types": ["chunked_attention", "full_attention"],
    },
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1},
    "minicpm3": {**_LATENT, "dim_model_base": 32},
    "ministral": {"sliding_window": 16},
    "mistral": {"sliding_window": 16},
    "olmo3": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {"sliding_window": 16},
    "qwen3_5_text": _DELTA,
    "qwen3_5_moe_text": _DELTA,
    "qwen3_next": _DELTA,
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "attention_window_size": 16},
    "starcoder2": {"sliding_window": 16},
    "youtu": _LATENT,
}


_TOWER: dict[str, Any] = {  # of images or sound, by the names of several families
    "hidden_size": 16,
    "d_model": 16,
    "embed_dim": 16,
    "intermediate_size": 32,
    "encoder_ffn_dim": 32,
    "mlp_dim": 32,
    "depth": 1,
    "num_hidden_layers": 1,
    "encoder_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_heads": 2,
    "encoder_attention_heads": 2,
    "head_dim": 8,
    "image_size": 28,
    "patch_size": 14,
    "num_mel_bins": 8,
    "num_position_embeddings": 16,
    "output_dim": 16,
    "vision_output_dim": 32,
    "projector_input_dim": 16,
    "projector_output_dim": 32,
    "out_hidden_size": 32,
    "vocab_size": 258,
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [0],
}
# Rotary embeddings of three axes.
_AXES = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "mrope_section": [1, 1, 2],
    "partial_rotary_factor": 1.0,
}
_THREE_AXES = {"qwen2_vl", "qwen2_5_vl", "glm4v", "glm46v", "glm4v_moe", "glm_ocr", "video_llama_3"}


def config(family: str) -> Any:
    if family not in CONFIG_MAPPING:
        pytest.skip(f"this version of transformers has no {family}")
    default = AutoConfig.for_model(family)
    parts = {name: part for name in default.sub_configs if (part := getattr(default, name, None)) is not None}
    if "text_config" not in parts:
        return AutoConfig.for_model(family, **_text(default))
    tiny_parts = {
        name: _text(part) if name == "text_config" else _known(_TOWER, part) for name, part in parts.items()
    }
    if family in _THREE_AXES:
        tiny_parts["text_config"]["rope_parameters"] = _AXES
    marks = {key: value for key, value in _GENERIC.items() if key.endswith("token_id")}
    kinds = {name: {"model_type": parts[name].model_type, **sizes} for name, sizes in tiny_parts.items()}
    return AutoConfig.for_model(family, **_known(marks, default), **kinds)


def _text(default: Any) -> dict[str, Any]:
    generic = _known(_GENERIC, default)
    if default.model_type == "falcon":
        del generic["head_dim"]
    return {**generic, **_OWN.get(default.model_type, {})}


def _known(sizes: dict[str, Any], default: Any) -> dict[str, Any]:
    names = {*dir(default), *default.attribute_map}
    return {key: value for key, value in sizes.items() if key in names}


def random_model(config: Any, *, seed: int = 0) -> Any:
    """In fp32, with weights so large that each token depends on all that it attends to."""
    torch.manual_seed(seed)
    whole = type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING
    found = (AutoModelForMultimodalLM if whole else AutoModelForCausalLM).from_config(config).float().eval()
    with torch.no_grad():
        for name, weight in found.named_parameters():
            if weight.dim() > 1 and "A_log" not in name:
                weight.normal_(0, weight.shape[-1] ** -0.5)
    return found


def model(family: str) -> Any:
    return random_model(config(family))


def save(family: str, folder: Path) -> Path:
    model(family).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def plainly(model: Any, prompt: tuple[int, ...], tokens: int) -> list[int]:
    """The answer of transformers' own greedy generation."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        answer = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=1,
            pad_token_id=1,
        )[0, len(prompt) :].tolist()
    return answer[: answer.index(1)] if 1 in answer else answer
