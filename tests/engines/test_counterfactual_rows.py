"""The local engine trains on rows that differ from others in one field too."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from llama_index_finetune_structured import (
    ConfigurationError,
    FinetuneDataset,
    LoraFinetuneEngine,
    LoraSettings,
    check,
)
from llama_index_finetune_structured.cli.main import app
from llama_index_finetune_structured.dataset.checks.counterfactuals import counterfactual_rows
from llama_index_finetune_structured.local.model.adapter import read_card

SETTINGS = LoraSettings(rank=2, epochs=1, batch_size=2, schema_prompt="none")


class Call(BaseModel):
    name: str
    room: str | None = None


def _data(rows: int = 16) -> FinetuneDataset:
    pairs = [
        (
            f"{name} called\n{f'in room {n}' if n % 2 else 'twice'}",
            Call(name=name, room=str(n) if n % 2 else None),
        )
        for n in range(10, 10 + rows)
        for name in ["Ada" + chr(ord("a") + n)]
    ]
    return FinetuneDataset.from_pairs(pairs, output_cls=Call)


def _steps(engine: LoraFinetuneEngine) -> int:
    engine.finetune()
    return engine.get_current_job().steps


def test_rows_that_differ_in_one_field_are_trained_on(
    tiny_llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    data = _data()
    made = len(counterfactual_rows(list(data)))
    assert made == 16
    report = check(data, base_model=tiny_llama)
    assert report.counterfactual_rows == made
    assert report.window_rows == 0
    assert "training adds 16 rows that differ in one field" in str(report)
    engine = LoraFinetuneEngine(data, base_model=tiny_llama, output_dir=tmp_path, config=SETTINGS)
    assert _steps(engine) == 16
    assert "16 rows that differ in one field are added to 16 rows" in caplog.text
    assert read_card(engine.adapter).rows == 16, "of the user's rows"


def test_they_can_be_left_out_and_are_another_run(tiny_llama: Path, tmp_path: Path) -> None:
    without = SETTINGS.model_copy(update={"counterfactuals": False})
    engine = LoraFinetuneEngine(_data(), base_model=tiny_llama, output_dir=tmp_path, config=without)
    assert _steps(engine) == 8
    with pytest.raises(ConfigurationError, match="counterfactuals"):
        LoraFinetuneEngine(_data(), base_model=tiny_llama, output_dir=tmp_path, config=SETTINGS).finetune()


def test_an_adapter_to_go_on_from_has_learned_this_already(tiny_llama: Path, tmp_path: Path) -> None:
    first = LoraFinetuneEngine(_data(), base_model=tiny_llama, output_dir=tmp_path / "first", config=SETTINGS)
    first.finetune()
    again = SETTINGS.model_copy(update={"schema_prompt": None, "rank": 2})
    goes_on = partial(LoraFinetuneEngine, _data(), start_from=tmp_path / "first", replay_share=0)
    assert _steps(goes_on(output_dir=tmp_path / "on", config=again)) == 8
    assert check(_data(), start_from=tmp_path / "first").counterfactual_rows == 0
    wanted = again.model_copy(update={"counterfactuals": True})
    assert _steps(goes_on(output_dir=tmp_path / "wanted", config=wanted)) == 16


def test_where_none_can_be_made_wanting_them_is_an_error(tiny_llama: Path, tmp_path: Path) -> None:
    data = FinetuneDataset.from_pairs([(f"Is {n} even?", {"even": n % 2 == 0}) for n in range(4)])
    config = SETTINGS.model_copy(update={"counterfactuals": True})
    engine = LoraFinetuneEngine(data, base_model=tiny_llama, output_dir=tmp_path, config=config)
    with pytest.raises(ConfigurationError, match="an optional field that some answers leave out"):
        engine.finetune()
    assert check(data, base_model=tiny_llama).counterfactual_rows == 0


def test_rows_that_are_longer_than_training_takes_are_left_out(tiny_llama: Path, tmp_path: Path) -> None:
    longest = check(_data(), base_model=tiny_llama, schema_prompt="none").longest_tokens
    assert check(_data(), base_model=tiny_llama, schema_prompt="none", max_length=longest).ok
    config = SETTINGS.model_copy(update={"max_length": longest})
    engine = LoraFinetuneEngine(_data(), base_model=tiny_llama, output_dir=tmp_path, config=config)
    steps = _steps(engine)
    assert 8 < steps < 16, "those without a field are shorter, those with one more line are not"


def test_the_command_tells_how_many_there_are(tiny_llama: Path, tmp_path: Path) -> None:
    rows = str(_data().save(tmp_path / "rows.jsonl"))
    asked = ["check", rows, "--base-model", str(tiny_llama), "--json"]
    assert json.loads(CliRunner().invoke(app, asked).stdout)["counterfactual_rows"] == 16
