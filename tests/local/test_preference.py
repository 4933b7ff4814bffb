"""Preference training: the loss of accepted and rejected answers, packed, is that of its definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llama_index_finetune_structured import LoraSettings
from llama_index_finetune_structured.local.model.adapter import add_lora
from llama_index_finetune_structured.local.model.lora_weights import lora_weights
from llama_index_finetune_structured.local.model.prompts import TokenRow
from llama_index_finetune_structured.local.train.loss import AnswerLoss, _use_attention
from llama_index_finetune_structured.local.train.preference import PreferenceLoss, PreferenceRow
from llama_index_finetune_structured.local.train.trainer import Trainer
from tests import tiny

_PROMPT = tuple(range(60, 90))
PAIRS = [
    PreferenceRow(
        TokenRow((*_PROMPT[: 20 + n], 7), (20 + n, 30, 31, 1)),
        TokenRow((*_PROMPT[: 20 + n], 7), (20 + n, 30, 40 + n, 41, 1)),
    )
    for n in range(6)
]


def _model(double: bool = False) -> Any:
    """A model whose LoRA weights are not those that it begins with untrained."""
    torch.manual_seed(0)
    model = add_lora(tiny.model("llama"), rank=4, alpha=8)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = 0.1 * torch.randn_like(weight)
    return model.double() if double else model


def _moved(model: Any) -> None:
    torch.manual_seed(1)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.05 * torch.randn_like(weight)


def _log_probability(model: Any, row: TokenRow) -> torch.Tensor:
    logits = model(torch.tensor([row.inputs])).logits[0, len(row.prompt) - 1 :]
    return logits.log_softmax(-1)[torch.arange(len(row.answer)), torch.tensor(row.answer)].sum()


def _by_definition(beta: float) -> tuple[float, torch.Tensor]:
    """The loss, and its gradient by autograd, one forward pass a row."""
    model, began = _model(double=True), _model(double=True)
    _moved(model)
    losses = []
    for pair in PAIRS:
        gains = [
            _log_probability(model, row) - _log_probability(began, row).detach()
            for row in (pair.chosen, pair.rejected)
        ]
        losses.append(-torch.nn.functional.logsigmoid(beta * (gains[0] - gains[1])))
    loss = torch.stack(losses).mean()
    loss.backward()
    return float(loss.detach()), _gradient(model)


def _gradient(model: Any) -> torch.Tensor:
    return torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None])


@pytest.mark.parametrize("piece_tokens", [8192, 40])
@pytest.mark.parametrize("packed", [True, False])
def test_loss_and_gradient_of_packed_pairs_are_those_of_the_definition(
    packed: bool, piece_tokens: int
) -> None:
    model = _model(double=True)
    loss = PreferenceLoss.for_model(model, piece_tokens)
    assert loss.packed
    loss.packed, loss.beta = packed, 0.3
    if not packed:  # as where a model cannot be packed: row by row
        _use_attention(model, "sdpa")
    _moved(model)
    found = loss.backward(PAIRS)
    expected, gradient = _by_definition(0.3)
    assert float(found) == pytest.approx(expected, rel=1e-12)
    # The norms of the model compute in fp32, also where tensors are fp64.
    assert float((_gradient(model) - gradient).norm() / gradient.norm()) < 1e-7
    assert loss.mean(PAIRS) == pytest.approx(expected, rel=1e-12)


def test_a_trained_adapter_is_no_reason_against_packing_in_any_precision() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        model = _model()
        for weight in model.parameters():
            weight.data = 20 * weight.data if weight.requires_grad else weight.data.to(dtype)
        before = [weight.clone() for weight in model.parameters() if weight.requires_grad]
        assert AnswerLoss.for_model(model).packed
        after = [weight for weight in model.parameters() if weight.requires_grad]
        assert all(map(torch.equal, before, after))


def _trainer(folder: Path, **settings: Any) -> Trainer:
    fixed: dict[str, Any] = {"rank": 4, "alpha": 8, "batch_size": 2, "epochs": 3, "checkpoint_steps": 1}
    config = LoraSettings(**fixed | settings)
    return Trainer(_model(), PAIRS, config, folder, fingerprint="f")


def test_training_begins_at_no_preference_and_makes_accepted_answers_likelier(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, learning_rate=3e-2, epochs=10)
    log = trainer.run(PAIRS[:2])
    assert log.steps[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert trainer.loss.mean(PAIRS) < 0.65
    assert len(log.validation) == 10


def test_a_run_that_was_stopped_goes_on_to_the_bytes_of_an_undisturbed_one(tmp_path: Path) -> None:
    whole = _trainer(tmp_path / "whole")
    whole.run()

    def kill(entry: dict[str, float]) -> None:
        if entry["step"] == 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        _trainer(tmp_path / "stopped").run((), kill)
    again = _trainer(tmp_path / "stopped")
    assert again.step == 3
    again.run()
    for name, weight in lora_weights(whole.model).items():
        assert torch.equal(weight, lora_weights(again.model)[name]), name


def test_a_run_of_one_step_takes_it(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, batch_size=6, epochs=1)
    log = trainer.run()
    assert [entry["learning_rate"] for entry in log.steps] == [trainer.learning_rate]
    assert trainer.loss.mean(PAIRS) < log.steps[0]["loss"]
