"""The bytes that a step of training allocates, counted at every operation; on fake tensors for models of any size."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from llama_index_finetune_structured.local.model.adapter import add_lora
from llama_index_finetune_structured.local.model.prompts import TokenRow
from llama_index_finetune_structured.local.train.fused_linear import fuse_lora
from llama_index_finetune_structured.local.train.layer_checkpointing import checkpoint_layers
from llama_index_finetune_structured.local.train.loss import AnswerLoss
from llama_index_finetune_structured.local.train.memory import ModelShape, shape_of

RANK = 16


class Allocations(TorchDispatchMode):
    """``peak``: the most bytes of tensors made inside that lived at one time. ``known``: storages not to count."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes = dict.fromkeys(known, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def shape(config: Any, dtype: torch.dtype) -> ModelShape:
    with torch.device("meta"):
        weights = dict(AutoModelForCausalLM.from_config(config).named_parameters())
    size = dtype.itemsize * sum(weight.numel() for weight in weights.values())
    return shape_of(config, {name: tuple(w.shape) for name, w in weights.items()}, size, dtype.itemsize)


def measured(config: Any, dtype: torch.dtype, rows: list[TokenRow], *, checkpointed: bool, fake: bool) -> int:
    """Bytes at the peak of a step's gradients: weights, LoRA with AdamW's moments, and all that is computed."""
    with torch.device("meta"):
        model = add_lora(AutoModelForCausalLM.from_config(config).eval(), rank=RANK, alpha=RANK)
    with FakeTensorMode(allow_non_fake_inputs=True) if fake else torch.no_grad():
        _materialise(model, dtype)
    with FakeTensorMode(allow_non_fake_inputs=True) if fake else torch.enable_grad():
        fuse_lora(model)
        model.get_base_model().set_attn_implementation("prefix_tree")
        if checkpointed:
            checkpoint_layers(model)
        storages = {w.untyped_storage()._cdata: w.untyped_storage().nbytes() for w in model.parameters()}
        with Allocations(set(storages)) as allocations:
            AnswerLoss(model, packed=True).backward(rows)
    moments = 2 * sum(w.numel() * 4 for w in model.parameters() if w.requires_grad)
    return sum(storages.values()) + moments + allocations.peak


def _materialise(model: Any, dtype: torch.dtype) -> None:
    """Give the weights memory on the CPU; tied ones the same."""
    made: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None and id(weight) not in made:
                kind = torch.float32 if weight.requires_grad else dtype
                data = torch.full(weight.shape, 0.01, dtype=kind, device="cpu")
                made[id(weight)] = torch.nn.Parameter(data, requires_grad=weight.requires_grad)
            if weight is not None:
                module._parameters[name] = made[id(weight)]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype, device="cpu")
