"""Merge an adapter into its base, and write the merged model as a plain transformers folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ...errors import ConfigurationError
from ...files import read_json
from ..model.adapter import AdapterCard, merge_adapter, write_card
from ..model.base_files import hashed_files
from ..model.base_models import BaseModelFiles, holds_quantized_weights, load_model, load_tokenizer
from ..model.chat_template import chat_template
from ..model.finite import not_finite
from ..model.quantization import made_dense
from ..model.reading import reading
from .output import atomic_output

__all__ = ["merged_model", "save_merged"]

_PROCESSOR = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
_DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


def merged_model(base: BaseModelFiles, adapter: Path | None) -> Any:
    """The base in fp32 on the CPU, with the adapter's weights merged into its own, if there is an adapter.

    Of a base whose files hold quantised weights, these are made dense.
    """
    model = load_model(base, dtype=torch.float32, device="cpu")
    if holds_quantized_weights(base):
        model = made_dense(model)
    return model if adapter is None else merge_adapter(model, adapter)


def save_merged(model: Any, base: BaseModelFiles, card: AdapterCard, target: Path, dtype: str) -> None:
    """Write weights, config, tokenizer and chat template, and the card with the bounds of answers.

    Raises ConfigurationError for weights that are not finite in ``dtype``, or a ``target`` that exists.
    """
    model = model.to(_DTYPES[dtype])
    if names := not_finite(model.state_dict().items()):
        wider = "bf16 or f32" if dtype == "f16" else "f32"
        raise ConfigurationError(f"{names[0]} does not fit into {dtype}: export as {wider}")
    with atomic_output(target) as folder:
        model.save_pretrained(folder, safe_serialization=True)
        tokenizer = load_tokenizer(base)
        tokenizer.chat_template = chat_template(tokenizer, card.prompt_date)
        tokenizer.save_pretrained(folder)
        _save_processor(base, folder)
        dense = card.model_copy(update={"quantization": None})
        write_card(folder, dense, hashed_files(folder))


def _save_processor(base: BaseModelFiles, folder: Path) -> None:
    """Copy how images and sound are prepared, of a base that reads them; the chat template is the tokenizer's."""
    for name in _PROCESSOR:
        if (base.path / name).is_file():
            with reading(f"base model {base.name!r}: its {name} is not read", "Copy or download it again"):
                config = read_json(base.path / name)
            config.pop("chat_template", None)
            (folder / name).write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
