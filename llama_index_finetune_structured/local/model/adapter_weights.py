"""An adapter's weights on their own, to be applied beside those of a base that several adapters share."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .adapter import fitted_lora

if TYPE_CHECKING:
    import torch

__all__ = ["AdapterWeights", "LowRank", "read_adapter_weights"]


class LowRank(NamedTuple):
    """``scaling`` (x downᵀ) upᵀ, added to a linear layer's result: ``down`` [rank, in], ``up`` [out, rank]."""

    down: torch.Tensor
    up: torch.Tensor
    scaling: float


@dataclass(frozen=True, eq=False)
class AdapterWeights:
    """The weights of one adapter.

    ``layers``: what is added to the results of linear layers, by name. ``parameters``: PEFT's layers that compute what
    is added to other weights, such as stacked experts, by the names of these. ``rows``: whether each row of a batch may
    have an adapter of its own; not where weights change, or where layers see an expert's tokens alone.
    """

    layers: Mapping[str, LowRank]
    parameters: Mapping[str, Any]
    rows: bool
    bytes: int


def read_adapter_weights(folder: Path, model: Any, skeleton: Any) -> AdapterWeights:
    """Read an adapter of the base ``model``, in the precision of the layers that it adapts.

    ``skeleton``: the base's ``structure``. Neither is changed. Raises ConfigurationError as ``attach_adapter``.
    """
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper
    from torch.nn import Parameter

    tuned, tensors = fitted_lora(copy.deepcopy(skeleton), folder)
    layers, parameters = dict[str, LowRank](), dict[str, Any]()
    for place, module in tuned.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        down, up = (tensors[f"{place}.{kind}.weight"] for kind in ("lora_A", "lora_B"))
        name = place.removeprefix("base_model.model.").replace(".base_layer", "")
        if isinstance(module, ParamWrapper):
            name = f"{name}.{module.parameter_name}"
            weight = model.get_parameter(name)
            # PEFT reads the weight's device and type.
            setattr(module.get_base_layer(), module.parameter_name, weight)
            for held, tensor in ((module.lora_A, down), (module.lora_B, up)):
                held["default"].weight = Parameter(tensor.to(weight.device), requires_grad=False)
            parameters[name] = module
        else:
            kind = _like(model.get_submodule(name))
            layers[name] = LowRank(down.to(**kind), up.to(**kind), module.scaling["default"])
    by_rows = not parameters and not any("expert" in part for name in layers for part in name.split("."))
    return AdapterWeights(layers, parameters, by_rows, sum(tensor.nbytes for tensor in tensors.values()))


def _like(layer: Any) -> dict[str, Any]:
    """Device and precision in which a linear layer computes."""
    weight = layer.weight
    return {"device": weight.device, "dtype": getattr(layer, "dense_dtype", weight.dtype)}
