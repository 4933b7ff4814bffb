"""Tiny, randomly initialised models with a real byte-level tokenizer, made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SPECIAL = ["<|im_start|>", "<|im_end|>"]


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level: a token a byte, and the two marks of ChatML."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: n for n, text in enumerate([*_SPECIAL, *alphabet])}
    bare = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=bare, eos_token="<|im_end|>", pad_token="<|im_end|>", bos_token="<|im_start|>"
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


def config(kind: str) -> Any:
    """A config of about 50,000 weights: ``llama``, ``qwen2``, ``gemma``, ``gemma2`` (sliding window),
    ``gemma3`` (sliding window, reads images too) or ``gpt2``.
    """
    size: dict[str, Any] = {"vocab_size": 258, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    grouped: dict[str, Any] = {
        **size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 8192,
    }
    if kind == "llama":
        return LlamaConfig(**grouped)
    if kind == "qwen2":
        return Qwen2Config(**grouped)
    if kind == "gemma":
        return GemmaConfig(**grouped)
    if kind == "gemma2":
        return Gemma2Config(**grouped, sliding_window=64, query_pre_attn_scalar=8)
    if kind == "gemma3":
        vision = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
        }
        return Gemma3Config(
            text_config={**grouped, "sliding_window": 64},
            vision_config={**vision, "image_size": 28, "patch_size": 14},
            mm_tokens_per_image=1,
        )
    return GPT2Config(**size, n_embd=32, n_layer=2, n_head=4, n_positions=8192)


def model(kind: str, *, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config(kind)).float()


def in_fp64(module: Any) -> Any:
    """The model in double precision throughout: transformers' own RMSNorm rounds to fp32 on the way."""
    for name, child in list(module.named_modules()):
        if type(child).__name__.endswith("RMSNorm"):
            offset = (
                1 if type(child).__name__.startswith("Gemma") else 0
            )  # Gemma's weights are offsets from one
            norm = torch.nn.RMSNorm(
                child.weight.shape, eps=getattr(child, "variance_epsilon", None) or child.eps
            )
            norm.weight = torch.nn.Parameter(child.weight.detach() + offset)
            parent, _, last = name.rpartition(".")
            setattr(module.get_submodule(parent), last, norm)
    return module.double()


def save(kind: str, folder: Path, *, seed: int = 0) -> Path:
    model(kind, seed=seed).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
