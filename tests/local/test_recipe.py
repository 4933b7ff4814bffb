"""The recipe of a run: what is chosen where the settings leave it open, what is kept, and what the run will take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llama_index_finetune_structured import LoraSettings
from llama_index_finetune_structured.local.model.adapter import add_lora
from llama_index_finetune_structured.local.model.lora_weights import lora_weights
from llama_index_finetune_structured.local.model.prompts import TokenRow
from llama_index_finetune_structured.local.train import trainer as trainer_module
from llama_index_finetune_structured.local.train.recipe import epochs_of, learning_rate_of, rows_a_step
from llama_index_finetune_structured.local.train.trainer import Trainer
from tests import tiny

SETTINGS = LoraSettings(rank=2, alpha=4, batch_size=2, learning_rate=0.1, checkpoint_steps=1)
ROWS = [TokenRow((5, 6, 7, 20 + n), (30 + n, 1)) for n in range(6)]
# What is trained makes these answers ever less likely.
OTHERS = [TokenRow((5, 6, 7, 20 + n), (90 + n, 80)) for n in range(6)]


def _trainer(folder: Path, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    model = add_lora(tiny.model("llama"), rank=2, alpha=4)
    return Trainer(model, ROWS, SETTINGS.model_copy(update=settings), folder, fingerprint="f")


@pytest.mark.parametrize(
    ("rows", "epochs"), [(0, 5), (1, 5), (400, 5), (500, 4), (1000, 2), (1400, 1), (10**6, 1)]
)
def test_few_rows_are_seen_more_often(rows: int, epochs: int) -> None:
    assert epochs_of(rows) == LoraSettings().epochs_for(rows) == epochs
    assert LoraSettings(epochs=7).epochs_for(rows, rows) == 7


@pytest.mark.parametrize(
    ("rows", "made", "epochs"),
    [(80, 80, 3), (80, 40, 4), (80, 1, 5), (500, 500, 2), (1000, 1000, 1), (0, 0, 5)],
)
def test_rows_that_were_made_of_others_take_no_more_steps(rows: int, made: int, epochs: int) -> None:
    assert epochs_of(rows, made) == LoraSettings().epochs_for(rows, made) == epochs
    assert epochs * (rows + made) <= epochs_of(rows) * rows + rows + made


@pytest.mark.parametrize(
    ("shared", "own", "rows"), [(0, 2000, 2), (0, 300, 3), (500, 150, 3), (500, 20, 4), (2000, 500, 2)]
)
def test_shorter_rows_are_more_a_step_and_what_they_share_counts_once(
    shared: int, own: int, rows: int
) -> None:
    made = [TokenRow((1,) * shared + (10 + n,) * (own - 2), (2, 3)) for n in range(9)]
    assert rows_a_step(made) == rows


def test_no_rows_are_no_error() -> None:
    assert rows_a_step([]) == 2


def test_wider_models_learn_at_a_lower_rate() -> None:
    assert learning_rate_of(576, 4) == pytest.approx(2e-3)
    rates = [learning_rate_of(width, 4) for width in (576, 2048, 4096)]
    assert rates == sorted(rates, reverse=True)
    assert 3e-4 < rates[-1] < 5e-4
    assert learning_rate_of(576, 1) == pytest.approx(1e-3)


def test_the_weights_with_the_lowest_held_out_loss_are_kept(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, epochs=6)
    log = trainer.run(OTHERS)
    losses = [entry["loss"] for entry in log.validation]
    assert len(losses) == 6
    assert min(losses) < losses[-1]
    assert trainer.loss.mean(OTHERS) == pytest.approx(min(losses), rel=1e-5)


def test_a_run_ends_after_two_epochs_without_a_lower_held_out_loss_unless_its_epochs_are_set(
    tmp_path: Path,
) -> None:
    log = _trainer(tmp_path / "open").run(OTHERS)
    losses = [entry["loss"] for entry in log.validation]
    assert len(losses) < 5
    assert losses.index(min(losses)) == len(losses) - 3
    assert len(_trainer(tmp_path / "set", epochs=5).run(OTHERS).validation) == 5
    assert len(_trainer(tmp_path / "none").run().steps) == 15


class _Killed(Exception):
    pass


@pytest.mark.parametrize("at", range(1, 15))
def test_a_run_that_was_interrupted_keeps_the_same_weights(tmp_path: Path, at: int) -> None:
    whole = _trainer(tmp_path / "whole")
    log = whole.run(OTHERS)

    def kill(entry: dict[str, float]) -> None:
        if entry["step"] == at:
            raise _Killed

    first = _trainer(tmp_path / "killed")
    try:
        first.run(OTHERS, kill)
    except _Killed:
        assert at <= len(log.steps)
    again = _trainer(tmp_path / "killed")
    assert [entry["loss"] for entry in again.run(OTHERS).validation] == [
        entry["loss"] for entry in log.validation
    ]
    for name, weight in lora_weights(whole.model).items():
        assert torch.equal(weight, lora_weights(again.model)[name]), name


def _timed(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Make every reading of the clock ``seconds`` later than the one before."""
    now = [0.0]

    def later() -> float:
        now[0] += seconds
        return now[0]

    monkeypatch.setattr("time.perf_counter", later)


def test_measuring_tells_time_and_memory_and_changes_no_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "_MEASURED_STEPS", 1)
    measured, plain = _trainer(tmp_path / "measured"), _trainer(tmp_path / "plain")
    with monkeypatch.context() as patch:
        _timed(patch, 2.0)
        cost = measured.measure()
    assert cost is not None
    assert cost.seconds == pytest.approx(30.0)
    assert cost.memory is None or cost.memory > 10**7
    assert all(weight.grad is None for weight in measured.weights)
    assert [e["loss"] for e in measured.run().steps] == [e["loss"] for e in plain.run().steps]
    assert measured.measure() is None  # it has begun


def test_a_short_run_is_not_measured(tmp_path: Path) -> None:
    assert _trainer(tmp_path).measure() is None


def test_minutes_plan_fewer_steps_and_a_resumed_run_keeps_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _timed(monkeypatch, 6.0)
    trainer = _trainer(tmp_path, minutes=1.0)
    trainer.measure()
    assert trainer.total_steps == 10

    def stop(entry: dict[str, float]) -> None:
        if entry["step"] == 4:
            raise _Killed

    with pytest.raises(_Killed):
        trainer.run(OTHERS, stop)
    again = _trainer(tmp_path, minutes=1.0)
    assert again.measure() is None
    steps = again.run(OTHERS).steps
    assert [entry["step"] for entry in steps] == list(range(1, len(steps) + 1))
    assert len(steps) <= again.total_steps == 10
    assert again.log.validation


def test_minutes_that_are_enough_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _timed(monkeypatch, 1.0)
    trainer = _trainer(tmp_path, minutes=10.0)
    trainer.measure()
    assert trainer.total_steps == 15
