"""vLLM for tests, where an environment with it is at hand, and base models that its CPU build can serve."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from llama_index_finetune_structured.local.model.base_models import resolve
from llama_index_finetune_structured.service.vllm.server import VllmChild
from tests import exporting

PROGRAM = "FINETUNE_STRUCTURED_VLLM"
"""Variable that names the program; else that of the benchmarks' environment is taken, or one on the path."""
_ENVIRONMENT = Path(__file__).parent.parent / ".venv-vllm"
_OPTIONS = ("--dtype", "float32", "--enforce-eager")


def vllm_command() -> list[str]:
    """The program with options of its ``serve``; the test is skipped where there is none."""
    places = [os.environ.get(PROGRAM), _ENVIRONMENT / "bin" / "vllm", "vllm"]
    for place in filter(None, places):
        if (program := shutil.which(str(place))) is not None:
            return [program, *_OPTIONS]
    pytest.skip(f"vLLM is not at hand: run benchmarks/vllm_environment.py, or set {PROGRAM}")


def save_base(folder: Path) -> Path:
    """A small base with random weights. vLLM has no attention for heads as small as those of ``tiny``."""
    words = exporting.tokenizer()
    config = LlamaConfig(
        vocab_size=len(words) + 4,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float()
    for weight in model.parameters():  # a wide spread, so that no two tokens are nearly equally likely
        if weight.dim() > 1:
            weight.data.mul_(4)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def children(base: Path, log: Path) -> Iterator[VllmChild]:
    """A vLLM server of a base on the CPU, which the caller starts; for fixtures."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        environment.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        server = VllmChild(resolve(base), log, command=vllm_command())
        try:
            yield server
        finally:
            server.end()
