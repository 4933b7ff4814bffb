"""Checkpointed layers take less memory and give the same gradients, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    Qwen3Config,
)

from llama_index_finetune_structured import LoraSettings
from llama_index_finetune_structured.local.model.adapter import add_lora
from llama_index_finetune_structured.local.model.lora_weights import lora_weights
from llama_index_finetune_structured.local.model.prompts import TokenRow
from llama_index_finetune_structured.local.train.fused_linear import fuse_lora
from llama_index_finetune_structured.local.train.layer_checkpointing import checkpoint_layers
from llama_index_finetune_structured.local.train.loss import AnswerLoss
from llama_index_finetune_structured.local.train.trainer import Trainer
from tests import tiny

GROUPED: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
CONFIGS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**GROUPED),
    "qwen3": lambda: Qwen3Config(**GROUPED),
    "gemma2": lambda: Gemma2Config(**GROUPED, sliding_window=64, query_pre_attn_scalar=8),
    "mixtral": lambda: MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2),
    # its layers have dropout of their own, which must stay off
    "opt": lambda: OPTConfig(
        vocab_size=258, hidden_size=32, ffn_dim=64, num_hidden_layers=3, num_attention_heads=4, dropout=0.5
    ),
}
SHARED = tuple(n % 250 + 2 for n in range(40))
ROWS = [TokenRow((*SHARED, 60 + n, 7), (20 + n, 30, 1)) for n in range(5)]


def _lora(kind: str, *, upper_layers: int | None = None) -> Any:
    torch.manual_seed(0)
    model = add_lora(
        AutoModelForCausalLM.from_config(CONFIGS[kind]()), rank=4, alpha=8, upper_layers=upper_layers
    )
    for weight in model.parameters():
        if weight.requires_grad:  # else half of the gradients are zero
            torch.nn.init.normal_(weight, std=0.1)
    return model


def _gradients(model: Any, *, checkpointed: bool, pieces: int = 8192) -> dict[str, torch.Tensor]:
    fuse_lora(model)
    loss = AnswerLoss.for_model(model, pieces)
    if checkpointed:
        assert checkpoint_layers(model) == 3
    loss.backward(ROWS)
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
@pytest.mark.parametrize("upper_layers", [None, 2])
@pytest.mark.parametrize("kind", list(CONFIGS))
def test_gradients_are_equal_to_the_bit(kind: str, upper_layers: int | None) -> None:
    plain = _gradients(_lora(kind, upper_layers=upper_layers), checkpointed=False)
    checkpointed = _gradients(_lora(kind, upper_layers=upper_layers), checkpointed=True)
    assert plain.keys() == checkpointed.keys()
    assert any(bool(gradient.any()) for gradient in plain.values())
    for name, gradient in plain.items():
        assert torch.equal(gradient, checkpointed[name]), name


def test_gradients_in_bf16_are_equal_to_the_bit() -> None:
    models = [_lora("llama") for _ in range(2)]
    for model in models:
        for weight in model.parameters():
            if not weight.requires_grad:
                weight.data = weight.data.bfloat16()
    plain = _gradients(models[0], checkpointed=False)
    checkpointed = _gradients(models[1], checkpointed=True)
    assert all(torch.equal(gradient, checkpointed[name]) for name, gradient in plain.items())


def test_the_layers_compute_in_evaluation_mode_and_their_activations_again() -> None:
    model = _lora("llama")
    loss = AnswerLoss.for_model(model)
    checkpoint_layers(model)
    layer = model.get_base_model().model.layers[1]
    modes: list[bool] = []
    layer.self_attn.register_forward_hook(lambda *_: modes.append(layer.training))
    loss.backward(ROWS)
    assert modes == [False, False], "once forwards, once more in the backward pass"


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_pieces_of_a_step_add_up_to_the_gradient_of_the_whole(kind: str) -> None:
    whole, pieces = (_gradients(_lora(kind).double(), checkpointed=True, pieces=size) for size in (8192, 50))
    for name, gradient in whole.items():
        assert torch.allclose(gradient, pieces[name], rtol=1e-4, atol=1e-9), name


def test_pieces_are_as_long_as_set_and_a_shared_prefix_counts_once() -> None:
    loss = AnswerLoss(tiny.model("llama"), packed=True, piece_tokens=60)
    sizes = [len(piece.ids) for piece, _ in loss._pieces(ROWS)]
    assert len(sizes) > 1
    assert max(sizes) <= 60
    assert len(list(AnswerLoss(loss.model, packed=True, piece_tokens=65)._pieces(ROWS))) == 1, "of 220 tokens"


def _trainer(folder: Path, **settings: Any) -> Trainer:
    config = LoraSettings(rank=4, alpha=8, batch_size=2, epochs=2, checkpoint_steps=1, **settings)
    return Trainer(_lora("llama"), ROWS, config, folder, fingerprint="f")


def test_a_killed_run_with_checkpointed_layers_resumes_exactly_also_without_them(tmp_path: Path) -> None:
    whole = _trainer(tmp_path / "whole")
    whole.run(ROWS[:2])

    def kill(entry: dict[str, float]) -> None:
        if entry["step"] == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        _trainer(tmp_path / "killed", checkpoint_layers=True).run(ROWS[:2], kill)
    for checkpointed in (True, False):
        again = _trainer(tmp_path / "killed", checkpoint_layers=checkpointed)
        again.run(ROWS[:2])
        for name, weight in lora_weights(whole.model).items():
            assert torch.equal(weight, lora_weights(again.model)[name]), name
