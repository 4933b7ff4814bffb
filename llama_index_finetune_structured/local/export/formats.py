"""The export formats, and ``export_adapter``, which writes an adapter in any of them."""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import ConfigurationError, MissingDependencyError
from ..model.adapter import AdapterCard, read_card, read_matching_card
from ..model.base_models import BaseModelFiles, resolve

__all__ = ["FORMATS", "export_adapter"]

FORMATS: dict[str, tuple[str, ...]] = {
    "merged": ("bf16", "f16", "f32"),
    "gguf": ("q8_0", "f16", "bf16", "f32"),
    "gguf-adapter": ("f32", "f16"),
    "gguf-base": ("q8_0", "f16", "bf16", "f32"),
}
"""Export format -> the types its weights can have, the default first."""


def export_adapter(
    adapter: str | Path,
    output: str | Path,
    *,
    format: str = "merged",
    dtype: str | None = None,
    base_model: str | Path | None = None,
) -> Path:
    """Write an adapter of ``LoraFinetuneEngine`` in a format of other programs; returns ``output``.

    Holds the whole model in memory in fp32.

    Args:
        adapter: The adapter's folder.
        output: The file or folder to write; it must not exist.
        format: ``merged``, a transformers folder with tokenizer and chat template (vLLM, SGLang,
            transformers); ``gguf``, the merged model as one file (llama.cpp, Ollama); ``gguf-adapter``, the
            LoRA weights alone, for llama.cpp's ``--lora`` on top of ``gguf-base``, the base model alone.
        dtype: Type of the weights, which are merged in fp32 and then cast. ``merged``: bf16, f16 or f32;
            ``gguf`` and ``gguf-base``: q8_0, f16, bf16 or f32; ``gguf-adapter``: f32 or f16. None: the first
            of these.
        base_model: The base, if it is no longer where it was in training.

    Raises:
        ConfigurationError: The adapter, base, format or dtype is wrong; GGUF export does not support the
            architecture; a weight does not fit into ``dtype``; or ``output`` exists.
        EngineError: ``output`` cannot be written, for example on a full disk.
        MissingDependencyError: The extra ``local`` is not installed.
    """
    if format not in FORMATS:
        raise ConfigurationError(f"format {format!r}: expected one of {', '.join(FORMATS)}")
    dtype = dtype or FORMATS[format][0]
    if dtype not in FORMATS[format]:
        raise ConfigurationError(
            f"dtype {dtype!r}: expected one of {', '.join(FORMATS[format])} for {format}"
        )
    folder, target = Path(adapter), Path(output)
    if os.path.exists(target):
        raise ConfigurationError(f"{target}: exists already; choose another output, or remove it first")
    card = read_card(folder)
    base = resolve(base_model if base_model is not None else card.base_model)
    read_matching_card(folder, base)
    try:
        _write(folder, card, base, target, format, dtype)
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", "local", "Exporting an adapter") from error
    return target


def _write(
    adapter: Path, card: AdapterCard, base: BaseModelFiles, target: Path, format: str, dtype: str
) -> None:
    from .merged import merged_model, save_merged

    if format == "merged":
        save_merged(merged_model(base, adapter), base, card, target, dtype)
    elif format == "gguf-adapter":
        from .gguf_adapter import save_adapter_gguf

        save_adapter_gguf(adapter, base, target, dtype)
    else:
        from .gguf_model import save_gguf

        model = merged_model(base, adapter if format == "gguf" else None)
        save_gguf(model, base, target, dtype, date=card.prompt_date)
