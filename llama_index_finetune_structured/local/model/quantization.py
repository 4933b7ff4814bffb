"""Base models whose layers hold 4 or 8 bits a weight, by bitsandbytes: QLoRA (arXiv:2305.14314).

Products are computed with the weights made dense again, one layer at a time, in the precision of the model.
bitsandbytes' own products round activations by the batch (int8), or weights and sums otherwise for one row than for
several (nf4 on a CPU with AVX-512), so that an answer would depend on the requests beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...errors import ConfigurationError, MissingDependencyError
from ...printable import package_logger
from .lora_files import linear_layers
from .lora_targets import lora_targets
from .reading import structure

if TYPE_CHECKING:
    import torch

__all__ = [
    "WEIGHT_BYTES",
    "Quantization",
    "dense_weight",
    "is_quantized",
    "is_quantized_layer",
    "made_dense",
    "quantized_tensors",
    "quantizing",
    "set_up_layers",
]

Quantization = Literal["nf4", "int8"]
WEIGHT_BYTES: dict[Quantization, float] = {"nf4": 0.516, "int8": 1.0}
"""Bytes of a quantised weight: nf4 has a scale of 8 bits for 64 weights, and a second one for 256 of these."""

# It warns, also where peft imports it, of missing kernels that nothing here uses.
package_logger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_KINDS = ("Linear4bit", "Linear8bitLt")
_METHOD = "bitsandbytes"


def is_quantized(config: Mapping[str, Any]) -> bool:
    """Whether a base's weights are stored as bitsandbytes quantised them. ``config``: of its ``config.json``."""
    stored = config.get("quantization_config")
    return isinstance(stored, dict) and stored.get("quant_method", _METHOD) == _METHOD


def quantizing(
    name: str, folder: Path, config: Mapping[str, Any], quantization: Quantization | None
) -> dict[str, Any]:
    """Options of transformers' ``from_pretrained`` that quantise the layers that LoRA adapts, and no others.

    ``name``, ``folder``, ``config``: of the base; ``config`` is that of its file. Raises ConfigurationError for a base
    that is quantised already, MissingDependencyError where bitsandbytes is missing.
    """
    stored = config.get("quantization_config")
    if quantization is None and not is_quantized(config):
        return {}
    if quantization is not None and stored:
        raise ConfigurationError(
            f"base model {name!r} is quantised already, as its config.json says, and quantization={quantization!r} "
            "would do it again: leave quantization out, or use the base that it was made from"
        )
    if find_spec(_METHOD) is None:
        raise MissingDependencyError(_METHOD, "quantized", f"A quantised base model ({name!r})")
    if quantization is None:
        return {}
    from transformers import BitsAndBytesConfig

    model = structure(folder)
    adapted = set(lora_targets(model).layers)
    options: dict[str, Any] = {
        "llm_int8_skip_modules": [layer for layer, _ in linear_layers(model) if layer not in adapted]
    }
    if quantization == "nf4":
        options |= {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    else:
        options["load_in_8bit"] = True
    return {"quantization_config": BitsAndBytesConfig(**options)}  # type: ignore[no-untyped-call]


def is_quantized_layer(layer: Any) -> bool:
    """Whether a module is a linear layer of bitsandbytes."""
    return type(layer).__name__ in _KINDS and type(layer).__module__.partition(".")[0] == _METHOD


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    return ((name, layer) for name, layer in model.named_modules() if is_quantized_layer(layer))


def set_up_layers(model: Any, dtype: torch.dtype) -> None:
    """Make the quantised layers of a model compute in ``dtype``, with their weights made dense."""
    for _, layer in _layers(model):
        if (state := getattr(layer.weight, "quant_state", None)) is not None:
            state.dtype = dtype
        layer.dense_dtype = dtype
        layer.forward = partial(_forward, layer)


def _forward(layer: Any, inputs: torch.Tensor) -> torch.Tensor:
    from torch.nn.functional import linear

    weight = dense_weight(layer)
    bias = None if layer.bias is None else layer.bias.to(weight.dtype)
    return linear(inputs.to(weight.dtype), weight, bias)


def dense_weight(layer: Any) -> torch.Tensor:
    """The weight [out, in] of a linear layer, made dense where it is quantised."""
    import torch

    if not is_quantized_layer(layer):
        return layer.weight  # type: ignore[no-any-return]
    if (state := getattr(layer.weight, "quant_state", None)) is not None:
        from bitsandbytes.functional import dequantize_4bit

        dense: torch.Tensor = dequantize_4bit(layer.weight.data, state)  # Typed only where it is installed.
        return dense
    rows, scales = layer.weight.data, _row_maxima(layer)[:, None] / 127
    # Multiplied in fp32 and rounded once, without a copy in fp32.
    return torch.mul(rows, scales, out=torch.empty(rows.shape, dtype=layer.dense_dtype, device=rows.device))


def _row_maxima(layer: Any) -> torch.Tensor:
    """The largest weight [out] of each row of an 8-bit layer."""
    found = getattr(layer.weight, "SCB", None)
    return layer.state.SCB if found is None else found  # type: ignore[no-any-return]


def quantized_tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """What shows in a model's quantised layers that their weights were not finite: the names, and scales of them."""
    for name, layer in _layers(model):
        state = getattr(layer.weight, "quant_state", None)
        if state is None:
            yield f"{name}.weight", _row_maxima(layer)
        else:
            yield f"{name}.weight", state.offset if state.nested else state.absmax


def made_dense(model: Any) -> Any:
    """The model with dense weights in place of its quantised ones, and as if it had never had these."""
    import torch
    from transformers.pytorch_utils import Conv1D

    for name, layer in list(_layers(model)):
        weight = dense_weight(layer)
        dense: Any
        with torch.device("meta"):
            if getattr(layer, "source_cls", None) is Conv1D:
                dense = Conv1D(layer.out_features, layer.in_features)  # type: ignore[no-untyped-call]
                weight = weight.T.contiguous()
            else:
                dense = torch.nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
        dense.weight = torch.nn.Parameter(weight, requires_grad=False)
        if dense.bias is not None:
            dense.bias = torch.nn.Parameter(layer.bias.data.to(weight.dtype), requires_grad=False)
        model.set_submodule(name, dense)
    model.hf_quantizer.remove_quantization_config(model)
    return model
