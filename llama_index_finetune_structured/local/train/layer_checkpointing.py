"""Checkpointing of a model's layers: only their inputs are kept, and the backward pass computes the rest again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

__all__ = ["checkpoint_layers"]


def checkpoint_layers(model: Any) -> int:
    """Turn transformers' own checkpointing on for every layer that has it; returns how many have.

    transformers checkpoints layers in training mode only, in which a layer's dropout would be on: the layer itself
    still computes in evaluation mode. Gradients are the same to the bit.
    """
    layers: list[Any] = [
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(_checkpointed, layer)
        layer.training = True  # its inner modules keep theirs
    return len(layers)


def _checkpointed(layer: Any, forward: Callable[..., Any], *inputs: Any) -> Any:
    def in_evaluation(*inputs: Any) -> Any:
        layer.training = False
        try:
            return forward(*inputs)
        finally:  # the second time, checkpoint ends the forward pass by an exception where nothing more is needed
            layer.training = True

    return checkpoint(in_evaluation, *inputs, use_reentrant=False, preserve_rng_state=False)
