"""The weights of an adapter as the start of another training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import ConfigurationError
from .adapter import load_lora
from .finite import require_finite
from .lora_files import LoraFile, read_lora_tensors

__all__ = ["load_start"]


def load_start(tuned: Any, folder: Path, config: LoraFile) -> None:
    """Set the LoRA weights of a PEFT model that ``add_lora`` made to those of an adapter's folder.

    ``config``: of the adapter. Raises ConfigurationError where LoRA adapts other weights of the model, or where the
    adapter's are damaged or not finite.
    """
    from peft import get_peft_model_state_dict

    tensors = read_lora_tensors(folder, config)
    expected = get_peft_model_state_dict(tuned, save_embedding_layers=False)
    shapes, found = ({name: t.shape for name, t in weights.items()} for weights in (expected, tensors))
    if shapes != found:
        name = sorted(name for name in {**shapes, **found} if shapes.get(name) != found.get(name))[0]
        raise ConfigurationError(
            f"{folder}: training cannot go on from it: it adapts other weights of the base than this run "
            f"({name}: {_shape(found.get(name))} there, {_shape(shapes.get(name))} here); go on from an adapter of "
            "LoraFinetuneEngine, or train from the base model"
        )
    require_finite(tensors.items(), f"adapter {folder}")
    load_lora(tuned, tensors)


def _shape(shape: Any) -> str:
    return "none" if shape is None else str(list(shape))
