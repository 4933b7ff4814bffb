"""The LoRA weights of a PEFT model: read, set, and set to those of an adapter that training goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConfigurationError
from .finite import require_finite
from .lora_files import LoraFile, read_lora_tensors

if TYPE_CHECKING:
    import torch

__all__ = ["copied_lora", "load_lora", "load_start", "lora_weights", "move_to_start"]


def lora_weights(tuned: Any) -> dict[str, torch.Tensor]:
    """The LoRA weights of a PEFT model, not copied, by their names in an adapter's file."""
    from peft import get_peft_model_state_dict

    weights: dict[str, torch.Tensor] = get_peft_model_state_dict(tuned, save_embedding_layers=False)
    return weights


def copied_lora(tuned: Any) -> dict[str, torch.Tensor]:
    """As ``lora_weights``, copied to the CPU."""
    return {name: weight.detach().cpu().clone() for name, weight in lora_weights(tuned).items()}


def load_lora(tuned: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Set the LoRA weights of a PEFT model that ``add_lora`` made, by their names in an adapter's file.

    PEFT's own function renames tensors as in transformers' old checkpoints, and leaves out those that it then finds
    no place for, such as those of Laguna's shared experts.
    """
    weights = dict(tuned.named_parameters())
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        weights[f"{layer}.default.{kind}"].data.copy_(tensor)


def move_to_start(tuned: Any, start: Mapping[str, torch.Tensor], share: float) -> None:
    """Set the LoRA weights of a PEFT model to the mean of theirs and of those that training began with.

    ``share``: the weight of the start in the mean, from 0 to 1.
    """
    ends = copied_lora(tuned)
    load_lora(tuned, {name: ends[name].lerp(begin, share) for name, begin in start.items()})


def load_start(tuned: Any, folder: Path, config: LoraFile) -> None:
    """Set the LoRA weights of a PEFT model that ``add_lora`` made to those of an adapter's folder.

    ``config``: of the adapter. Raises ConfigurationError where LoRA adapts other weights of the model, or where the
    adapter's are damaged or not finite.
    """
    tensors = read_lora_tensors(folder, config)
    shapes, found = ({name: t.shape for name, t in each.items()} for each in (lora_weights(tuned), tensors))
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
