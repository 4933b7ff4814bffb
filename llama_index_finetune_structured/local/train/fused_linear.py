"""A fused LoRA layer: the low-rank products are added in place to the frozen layer's result.

peft's own layer scales, casts and adds in separate passes over every activation; on a CPU these cost about a fifth
of a step. Of a quantised layer, only the quantised weights are kept for the backward pass.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear, LoraLayer

from ..model.quantization import dense_weight, is_quantized_layer

__all__ = ["fuse_lora"]


def fuse_lora(model: Any) -> int:
    """Replace the forward of a PEFT model's plain or quantised LoRA layers by one function; returns how many.

    Same mathematics and same weights. Layers with dropout, variants (DoRA), biases or transposed weights keep
    peft's own forward.
    """
    plain: list[Any] = [
        module for module in model.modules() if isinstance(module, LoraLayer) and _is_plain(module)
    ]
    for module in plain:
        (name,) = module.active_adapters
        module.forward = partial(
            _forward,
            module.base_layer,
            module.lora_A[name].weight,
            module.lora_B[name].weight,
            module.scaling[name],
        )
    return len(plain)


def _is_plain(module: Any) -> bool:
    base = module.base_layer
    known = is_quantized_layer(base) or (isinstance(module, Linear) and type(base) is torch.nn.Linear)
    if not known or len(module.active_adapters) != 1 or module.merged:
        return False
    name = module.active_adapters[0]
    return (
        isinstance(module.lora_dropout[name], torch.nn.Identity)
        and name not in module.lora_variant
        and module.lora_B[name].bias is None
        and not module.fan_in_fan_out
    )


def _forward(
    base: torch.nn.Linear, down: torch.Tensor, up: torch.Tensor, scaling: float, inputs: torch.Tensor
) -> torch.Tensor:
    outputs: torch.Tensor = _LoraLinear.apply(inputs, base, down, up, scaling)  # type: ignore[no-untyped-call]
    # A view made here: a model may change it in place (Gemma 3n), which autograd refuses for a view made in forward.
    return outputs.view(*inputs.shape[:-1], -1)


class _LoraLinear(torch.autograd.Function):
    """x [..., in] -> x Wᵀ + bias + scaling (x Aᵀ) Bᵀ [rows, out].

    W [out, in] is frozen; A [rank, in] and B [out, rank] are trained, their master weights are fp32. All products
    are computed in W's precision, as under autocast.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        base: torch.nn.Linear,
        down: torch.Tensor,
        up: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        weight = dense_weight(base)
        ctx.base, ctx.scaling, ctx.dtype, ctx.master, ctx.shape = (
            base,
            scaling,
            inputs.dtype,
            down.dtype,
            inputs.shape,
        )
        with torch.autocast(inputs.device.type, enabled=False):
            flat = inputs.reshape(-1, inputs.shape[-1]).to(weight.dtype)
            down, up = down.to(weight.dtype), up.to(weight.dtype)
            bias = None if base.bias is None else base.bias.to(weight.dtype)
            low = flat @ down.T
            outputs: torch.Tensor = torch.nn.functional.linear(flat, weight, bias)
            outputs.addmm_(low, up.T, alpha=scaling)
        ctx.save_for_backward(flat, low, down, up)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, low, down, up = ctx.saved_tensors
        with torch.autocast(flat.device.type, enabled=False):
            grad_outputs = gradients[0].to(flat.dtype)
            grad_low = grad_outputs @ (up * ctx.scaling)
            grad_inputs = None
            if ctx.needs_input_grad[0]:
                grad_inputs = (grad_outputs @ dense_weight(ctx.base)).addmm_(grad_low, down).to(ctx.dtype)
                grad_inputs = grad_inputs.view(ctx.shape)
            grad_down = (grad_low.T @ flat).to(ctx.master)
            grad_up = (grad_outputs.T @ low * ctx.scaling).to(ctx.master)
        return grad_inputs, None, grad_down, grad_up, None
