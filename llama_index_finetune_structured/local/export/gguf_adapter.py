"""Write the LoRA weights alone as a GGUF file, for llama.cpp's ``--lora``."""

from __future__ import annotations

from pathlib import Path

import gguf
from transformers import AutoConfig

from ..model.base_models import BaseModelFiles
from ..model.finite import require_finite
from ..model.lora_files import read_lora_config, read_lora_tensors
from .gguf_layout import GgufLayout
from .gguf_model import write_tensors
from .output import atomic_output

__all__ = ["save_adapter_gguf"]

_PREFIX = "base_model.model."  # of tensor names in PEFT's files


def save_adapter_gguf(adapter: Path, base: BaseModelFiles, target: Path, dtype: str) -> None:
    """Write ``NAME.lora_a`` [rank, in] and ``NAME.lora_b`` [out, rank] of every adapted layer.

    Raises ConfigurationError for weights that are not finite, in the file or in ``dtype``.
    """
    layout = GgufLayout(AutoConfig.from_pretrained(base.path, trust_remote_code=False))
    config, tensors = read_lora_config(adapter), {}
    weights = read_lora_tensors(adapter, config)
    require_finite(weights.items(), f"adapter {adapter}")
    for key, weight in weights.items():
        module, _, part = key.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".lora_")
        tensor = f"{module}.weight"
        ordered = layout.rows(tensor, weight) if part == "B" else weight
        tensors[f"{layout.name(tensor)}.lora_{part.lower()}"] = ordered
    with atomic_output(target) as path:
        writer = gguf.GGUFWriter(path, layout.arch_name)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_name(target.stem)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(config.lora_alpha))
        write_tensors(writer, tensors, dtype)
