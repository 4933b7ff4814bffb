"""Untrained adapters of a base, with random weights so large that each of them answers in its own way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llama_index_finetune_structured.local.model.adapter import AdapterCard, add_lora, save_adapter
from llama_index_finetune_structured.local.model.base_models import load_model, resolve
from llama_index_finetune_structured.local.schema.bounds import AnswerBounds


def save(
    base: Path, folder: Path, *, seed: int, rank: int = 4, upper_layers: int | None = None, **card: Any
) -> Path:
    """An adapter's folder. ``card``: fields of its card."""
    files = resolve(base)
    tuned = add_lora(
        load_model(files, dtype=torch.float32, quantization=card.get("quantization")),
        rank=rank,
        alpha=2 * rank,
        upper_layers=upper_layers,
    )
    draw = torch.Generator().manual_seed(seed)
    for name, weight in tuned.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn(weight.shape, generator=draw) * (0.5 / weight.shape[-1]) ** 0.5
    fields: dict[str, Any] = {
        "base_model": str(base),
        "base_sha256": files.sha256,
        "base_files": files.files,
        "bounds": AnswerBounds(),
        "longest_answer_tokens": 20,
        "rows": 8,
        "fingerprint": f"random-{seed}",
        **card,
    }
    save_adapter(tuned, folder, AdapterCard(**fields))
    return folder
