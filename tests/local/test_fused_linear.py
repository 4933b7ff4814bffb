"""The fused LoRA layers compute the same as peft's own."""

from __future__ import annotations

import copy

import pytest
import torch

from llama_index_finetune_structured.local.model.adapter import add_lora
from llama_index_finetune_structured.local.model.prompts import TokenRow
from llama_index_finetune_structured.local.train.fused_linear import fuse_lora
from llama_index_finetune_structured.local.train.loss import AnswerLoss
from tests import tiny

ROWS = [TokenRow((5, 6, 7, 8), (20, 21)), TokenRow((5, 6, 9), (23,))]


def _gradients(model: object) -> tuple[float, list[torch.Tensor]]:
    loss = float(AnswerLoss(model, packed=False).backward(ROWS))
    return loss, [weight.grad for weight in model.parameters() if weight.grad is not None]  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_fused_layers_give_the_gradients_of_peft(kind: str) -> None:
    model = add_lora(tiny.in_fp64(tiny.model(kind).eval()), rank=4, alpha=8).double()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(0))
    fused = copy.deepcopy(model)
    assert fuse_lora(fused) == 14
    own_loss, own = _gradients(model)
    fused_loss, ours = _gradients(fused)
    assert fused_loss == pytest.approx(own_loss, rel=1e-12)
    assert len(ours) == len(own) == 28
    for theirs, mine in zip(own, ours, strict=True):
        assert float((theirs - mine).norm()) <= 1e-12 * float(theirs.norm())


def test_frozen_bf16_weights_keep_fp32_gradients_for_lora() -> None:
    model = add_lora(tiny.model("llama").bfloat16(), rank=4, alpha=8)
    assert fuse_lora(model) == 14
    _, gradients = _gradients(model)
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


def test_transposed_layers_keep_their_own_forward() -> None:
    model = add_lora(tiny.model("gpt2"), rank=4, alpha=8)
    assert fuse_lora(model) == 0


def test_a_model_may_change_the_output_of_a_fused_layer_in_place() -> None:  # as Gemma 3n does
    model = add_lora(tiny.model("llama"), rank=4, alpha=8)
    fuse_lora(model)
    layer = next(m for name, m in model.named_modules() if name.endswith("q_proj"))
    inputs = torch.randn(2, 3, 32, requires_grad=True)
    outputs = layer(inputs)
    outputs += 1
    outputs.sum().backward()
    assert inputs.grad is not None
    assert inputs.grad.shape == inputs.shape
