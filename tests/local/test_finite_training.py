"""Training stops at the first figure that is not finite, and saves nothing that is not."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llama_index_finetune_structured import LoraFinetuneEngine, LoraSettings
from llama_index_finetune_structured.errors import ConfigurationError, EngineError
from llama_index_finetune_structured.local.model.adapter import add_lora
from llama_index_finetune_structured.local.model.finite import not_finite, require_finite
from llama_index_finetune_structured.local.model.prompts import TokenRow
from llama_index_finetune_structured.local.train import checkpoints
from llama_index_finetune_structured.local.train.loss import AnswerLoss
from llama_index_finetune_structured.local.train.trainer import Trainer
from tests import exporting, tiny

NOT_FINITE = [float("nan"), float("inf"), -float("inf")]
SETTINGS = LoraSettings(rank=2, alpha=4, batch_size=2, epochs=2, checkpoint_steps=1)
ROWS = [TokenRow((5, 6, 7, 20 + n), (30 + n, 1)) for n in range(6)]
BAD_TOKEN = 99


def _trainer(folder: Path, rows: list[TokenRow] = ROWS, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    model = add_lora(tiny.model("llama"), rank=2, alpha=4)
    return Trainer(model, rows, SETTINGS.model_copy(update=settings), folder, fingerprint="f")


def _spoil(trainer: Trainer, token: int = BAD_TOKEN) -> None:
    """Make every row that holds the token overflow, as a rare token's weights can in half precision."""
    with torch.no_grad():
        trainer.model.get_base_model().get_input_embeddings().weight[token] = float("inf")


def _assert_saved_is_finite(folder: Path) -> None:
    for path in folder.rglob("*.safetensors"):
        assert not not_finite(load_file(path).items()), path
    for path in folder.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize("rate", [1e4, 1e30])
def test_a_learning_rate_that_is_far_too_high_ends_in_an_error_and_never_in_a_broken_adapter(
    tiny_llama: Path, tmp_path: Path, rate: float
) -> None:
    settings = LoraSettings(rank=2, batch_size=2, epochs=4, learning_rate=rate, checkpoint_steps=1)
    engine = LoraFinetuneEngine(
        exporting.colours(), base_model=tiny_llama, output_dir=tmp_path, config=settings
    )
    try:
        engine.finetune()
    except EngineError as error:
        text = str(error)
        assert not engine.adapter.exists()
        assert engine.get_current_job().status != "succeeded"
        assert all(part in text for part in (" of 8: ", "lower learning_rate", "checkpoint"))
    else:
        assert rate == 1e4, "a rate that overflows cannot end well"
    _assert_saved_is_finite(tmp_path)


def test_a_row_with_a_loss_that_is_not_finite_stops_the_run_at_its_step_and_is_named(tmp_path: Path) -> None:
    rows = [*ROWS[:4], TokenRow((5, BAD_TOKEN, 7), (31, 1)), ROWS[5]]
    trainer = _trainer(tmp_path, rows)
    _spoil(trainer)
    at = next(n for n, batch in enumerate(trainer._batches, 1) if rows[4] in batch)
    with pytest.raises(EngineError) as raised:
        trainer.run()
    text = str(raised.value)
    assert f"step {at} of 6: the loss is nan" in text
    assert "by itself, the loss is not finite in 5." in text
    assert (f"The checkpoint of step {at - 1} is kept" if at > 1 else "No checkpoint was saved yet") in text
    assert trainer.step == len(trainer.log.steps) == at - 1
    newest = checkpoints.newest_checkpoint(tmp_path)
    assert (newest[1]["step"] if newest else 0) == at - 1
    _assert_saved_is_finite(tmp_path)


def test_a_piece_of_an_accumulated_batch_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    rows = [*ROWS[:5], TokenRow((5, BAD_TOKEN, 7), (31, 1))]
    trainer = _trainer(tmp_path, rows, batch_size=6, piece_tokens=6)
    _spoil(trainer)
    assert len(list(trainer.loss._pieces(rows))) == 6
    with pytest.raises(EngineError, match=r"step 1 of 2: the loss is nan.* not finite in 6\."):
        trainer.run()


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_is_applied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = _trainer(tmp_path)
    own = AnswerLoss.backward
    before = [weight.detach().clone() for weight in trainer.weights]

    def overflowing(loss: AnswerLoss, rows: Any) -> torch.Tensor:
        total = own(loss, rows)
        trainer.weights[3].grad[0, 0] = float("inf")
        return total

    monkeypatch.setattr(AnswerLoss, "backward", overflowing)
    with pytest.raises(EngineError, match=r"step 1 of 6: the gradient's norm is inf"):
        trainer.run()
    assert all(torch.equal(old, new) for old, new in zip(before, trainer.weights, strict=True))
    assert not list(tmp_path.iterdir())


def test_a_validation_loss_that_is_not_finite_stops_the_run_and_is_not_saved(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, checkpoint_steps=2)
    _spoil(trainer)
    with pytest.raises(
        EngineError, match=r"step 3 of 6: the loss of the held-out rows is nan.*of step 2 is kept"
    ):
        trainer.run([TokenRow((5, BAD_TOKEN), (6,))])
    _assert_saved_is_finite(tmp_path)


@pytest.mark.parametrize("step", [2, 6])
def test_a_weight_that_is_not_finite_after_a_step_is_never_saved(tmp_path: Path, step: int) -> None:
    trainer = _trainer(tmp_path)

    def break_a_weight(*_: Any) -> None:
        if trainer.step + 1 == step:
            trainer.weights[0].data[0, 0] = float("nan")

    trainer.optimizer.register_step_post_hook(break_a_weight)
    with pytest.raises(EngineError, match=rf"step {step} of 6: .*lora_A.*step {step - 1} is kept"):
        trainer.run()
    assert (checkpoints.newest_checkpoint(tmp_path) or ({}, {"step": 0}))[1]["step"] == step - 1
    resumed = _trainer(tmp_path)
    assert resumed.step == step - 1
    resumed.run()
    undisturbed = _trainer(tmp_path / "whole")
    undisturbed.run()
    for a, b in zip(resumed.weights, undisturbed.weights, strict=True):
        assert torch.equal(a, b)


def test_a_step_reads_the_device_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = _trainer(tmp_path)
    reads, before_the_update = list[str](), list[int]()
    for name in ("tolist", "item", "__float__", "__bool__"):
        own: Any = getattr(torch.Tensor, name)

        def counted(tensor: Any, *args: Any, own: Any = own, name: str = name) -> Any:
            reads.append(name)
            return own(tensor, *args)

        monkeypatch.setattr(torch.Tensor, name, counted)
    # AdamW itself reads its step counters, which are on the CPU.
    trainer.optimizer.register_step_pre_hook(lambda *_: before_the_update.append(len(reads)))
    trainer._train_step(trainer._batches[0])
    assert (reads[0], before_the_update) == ("tolist", [1])


# Weights, when they are loaded


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("what", ["one weight", "the embedding of one token"])
def test_a_base_with_weights_that_are_not_finite_is_refused_by_name(
    tmp_path: Path, value: float, what: str
) -> None:
    base = tiny.save("llama", tmp_path / "base")
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        if what == "one weight":
            model.model.layers[1].mlp.up_proj.weight[3, 5] = value
        else:
            model.model.embed_tokens.weight[200] = value
    model.save_pretrained(base)
    name = "up_proj" if what == "one weight" else "embed_tokens"
    engine = LoraFinetuneEngine(exporting.colours(), base_model=base, output_dir=tmp_path / "run")
    with pytest.raises(ConfigurationError, match=rf"base model .*{name}.*is not finite"):
        engine.finetune()
    assert not engine.adapter.exists()


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_value_that_is_not_finite_is_found_at_any_place(dtype: torch.dtype, value: float) -> None:
    for place in (0, 1, 37, 63):
        weight = torch.ones(8, 8, dtype=dtype)
        weight.view(-1)[place] = value
        weights = [("whole", torch.ones(3)), ("numbers", torch.ones(2, dtype=torch.int64)), ("bad", weight)]
        assert not_finite(weights) == ["bad"]
        with pytest.raises(ConfigurationError, match=r"^it: the weight bad is not finite"):
            require_finite(weights, "it")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_largest_finite_weights_pass(dtype: torch.dtype) -> None:
    large = torch.full((64, 64), torch.finfo(dtype).max, dtype=dtype)
    require_finite([("large", large), ("small", -large), ("none", torch.ones(0))], "it")
    require_finite([], "it")


@pytest.mark.parametrize(
    "wrong",
    [
        *({"learning_rate": rate} for rate in (float("nan"), float("inf"), 1e300, -1.0, 0.0)),
        *({name: value} for name in ("rank", "alpha", "epochs") for value in (0, -1, 10**9)),
        *({"seed": seed} for seed in (-1, 2**63)),
        {"dropout": 0.1},
    ],
    ids=str,
)
def test_a_setting_that_cannot_work_is_one_clear_error_that_names_it(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        LoraSettings(**wrong)


def test_damage_is_logged_with_the_step_that_training_goes_on_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _trainer(tmp_path).run()
    newest = tmp_path / "checkpoint-00000006" / "state.safetensors"
    content = bytearray(newest.read_bytes())
    content[-3] ^= 1
    newest.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert _trainer(tmp_path).step == 5
    (text,) = [record.getMessage() for record in caplog.records if "not used" in record.getMessage()]
    assert "checkpoint-00000006 (its tensors do not match their checksum)" in text
    assert text.endswith("Training goes on from step 5")
