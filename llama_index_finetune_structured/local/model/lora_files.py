"""Read the two files of a LoRA adapter that decide its answers, and check them against the base, before PEFT runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError, model_validator

from ...descriptors import open_regular
from ...errors import ConfigurationError
from ...files import read_json
from .reading import reading

if TYPE_CHECKING:
    import torch

__all__ = [
    "ADAPTER_CONFIG",
    "WEIGHTS",
    "LoraFile",
    "linear_layers",
    "linear_size",
    "read_lora_config",
    "read_lora_tensors",
    "require_complete",
    "require_layers",
]

ADAPTER_CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_MEND = "Copy the adapter's folder again, or train again"
# Keys of PEFT's file that change nothing in a trained adapter. Every other one must be empty or false.
_WITHOUT_EFFECT = (
    "base_model_name_or_path",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
)
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$", max_length=500)]


class LoraFile(BaseModel):
    """What the ``adapter_config.json`` of plain LoRA says.

    ``r``: the rank. ``target_modules``: names of layers, or their ends. ``target_parameters``: names of weights, or
    their ends; weights of experts that are stacked in one tensor have a pair of LoRA matrices each.
    ``layers_to_transform``: indices of the blocks whose layers are adapted; None: all.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    peft_type: Literal["LORA"]
    task_type: Literal["CAUSAL_LM"]
    r: StrictInt = Field(ge=1, le=65536)
    lora_alpha: StrictInt | float = Field(gt=0, le=2**31, allow_inf_nan=False)
    target_modules: list[_Name] = Field(max_length=100_000)
    target_parameters: list[_Name] | None = Field(default=None, max_length=100_000)
    layers_to_transform: list[Annotated[StrictInt, Field(ge=0)]] | None = None
    fan_in_fan_out: StrictBool = False
    bias: Literal["none"] = "none"
    init_lora_weights: StrictBool | Literal["gaussian"] = True

    @model_validator(mode="after")
    def _is_plain(self) -> LoraFile:
        changed = [n for n, value in (self.model_extra or {}).items() if value and n not in _WITHOUT_EFFECT]
        if changed:
            raise ValueError(f"{', '.join(changed)}: set, and only plain LoRA is read")
        if not self.target_modules and not self.target_parameters:
            raise ValueError("target_modules: empty, so that no layer is adapted")
        return self


def read_lora_config(folder: Path) -> LoraFile:
    """Read an adapter's configuration. Raises ConfigurationError for anything but plain LoRA."""
    path = folder / ADAPTER_CONFIG
    try:
        return LoraFile.model_validate(read_json(path))
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        where = ".".join(map(str, found["loc"]))
        raise ConfigurationError(f"{path}: {where}{': ' * bool(where)}{found['msg']}. {_MEND}") from error
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: cannot be read ({error}). {_MEND}") from error


def read_lora_tensors(folder: Path, config: LoraFile) -> dict[str, torch.Tensor]:
    """Read an adapter's weights. Raises ConfigurationError where they are damaged or of another rank."""
    path = folder / WEIGHTS
    with reading(f"{path}: cannot be read", _MEND):
        from safetensors.torch import load

        with open_regular(path) as file:  # read whole: a mapped file that another process cuts ends this one
            tensors = load(file.read())
    for name, tensor in tensors.items():
        rank = tensor.shape[0] if name.endswith(".lora_A.weight") and tensor.dim() == 2 else config.r
        if config.target_parameters and rank and not rank % config.r:
            rank = config.r  # stacked experts: their number is checked against the base, with all shapes
        if rank != config.r or not tensor.is_floating_point():
            raise ConfigurationError(
                f"{path}: {name} is {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}; expected "
                f"rank {config.r}, as {ADAPTER_CONFIG} says. {_MEND}"
            )
    return tensors


def linear_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Name and module of the layers that PEFT can adapt: also those of derived classes, such as Falcon's."""
    import torch
    from transformers.pytorch_utils import Conv1D

    return ((n, m) for n, m in model.named_modules() if isinstance(m, (torch.nn.Linear, Conv1D)))


def linear_size(layer: Any) -> tuple[int, int]:
    """Outputs and inputs of a linear layer, also of one whose weights are quantised."""
    if hasattr(layer, "out_features"):
        return layer.out_features, layer.in_features
    return layer.weight.shape[1], layer.weight.shape[0]  # Conv1D


def require_layers(folder: Path, config: LoraFile, model: Any) -> None:
    """Raise ConfigurationError where the base has no layer or weight of a name, or no block of an index."""
    layers, weights = (
        (name for name, _ in linear_layers(model)),
        (name for name, _ in model.named_parameters()),
    )
    for key, named, known in (
        ("target_modules", config.target_modules, layers),
        ("target_parameters", config.target_parameters or (), weights),
    ):
        ends = {name.split(".", n)[n] for name in known for n in range(name.count(".") + 1)}
        if unknown := [name for name in named if name not in ends]:
            kind = "layer" if key == "target_modules" else "weight"
            raise ConfigurationError(
                f"{folder / ADAPTER_CONFIG}: {key} names {unknown[0]!r}, and the base has no such {kind}. {_MEND}"
            )
    count = model.config.get_text_config().num_hidden_layers
    if above := [index for index in config.layers_to_transform or () if index >= count]:
        raise ConfigurationError(
            f"{folder / ADAPTER_CONFIG}: layers_to_transform names block {above[0]}, and the base has {count}. {_MEND}"
        )


def require_complete(folder: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise ConfigurationError where tensors are missing, unknown, or of another shape than the base's layers."""
    for problem, names in {
        "is missing": [name for name in expected if name not in found],
        "belongs to no layer of the base": [name for name in found if name not in expected],
        "has another shape than the base's layer": [
            name for name in found if name in expected and found[name].shape != expected[name].shape
        ],
    }.items():
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise ConfigurationError(f"{folder / WEIGHTS}: {sorted(names)[0]}{more} {problem}. {_MEND}")
