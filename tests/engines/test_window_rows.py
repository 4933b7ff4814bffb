"""The local engine trains on rows of windows too, and keeps the rules of lists in the adapter's card."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llama_index_finetune_structured import (
    ConfigurationError,
    Example,
    FinetuneDataset,
    LoraFinetuneEngine,
    LoraSettings,
    check,
    parity,
)
from llama_index_finetune_structured.cli.main import app
from llama_index_finetune_structured.dataset import render
from llama_index_finetune_structured.local.model.adapter import read_card
from llama_index_finetune_structured.local.schema.bounds import schema_key
from llama_index_finetune_structured.local.schema.list_items import ItemList

SCHEMA = {
    "type": "object",
    "properties": {"names": {"type": "array", "items": {"type": "string"}}},
    "required": ["names"],
}
NAMES = ["Ada", "Bo", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hal"]
SETTINGS = LoraSettings(rank=2, epochs=1, batch_size=2)


def _data(rows: int = 12) -> FinetuneDataset:
    pairs: list[tuple[str, Any]] = []
    for n in range(rows):
        names = [NAMES[n % 8], NAMES[(n + 3) % 8]]
        pairs.append((f"{names[0]} came at {n}. {names[1]} left at {n + 1}. It was {n}.", {"names": names}))
    return FinetuneDataset.from_pairs(pairs, schema=SCHEMA)


def _steps(engine: LoraFinetuneEngine) -> int:
    engine.finetune()
    return engine.get_current_job().steps


def test_lists_are_trained_on_windows_too(
    tiny_llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    data = _data()
    before = [row.to_json() for row in data]
    engine = LoraFinetuneEngine(data, base_model=tiny_llama, output_dir=tmp_path, config=SETTINGS)
    report = check(data, base_model=tiny_llama)
    assert report.window_rows > 0
    assert _steps(engine) == -(-(12 + report.window_rows) // 2)
    assert f"{report.window_rows} rows of windows are added to 12 rows" in caplog.text
    assert [row.to_json() for row in data] == before
    card = read_card(engine.adapter)
    rules = card.list_rules[schema_key(SCHEMA)]
    assert rules.lists == (ItemList(name="names"),)
    assert rules.merged([{"names": ["Ada"]}, {"names": ["Ada", "Bo"]}]) == {"names": ["Ada", "Bo"]}
    assert card.rows == 12
    assert card.windows == engine.get_finetuned_model().windows == 1
    assert engine.get_finetuned_model(windows=0).windows == 0
    served_way = engine.get_finetuned_model(windows=0, grounded=False)
    found = parity(engine.get_finetuned_model(), data, {"plain": served_way}, show_progress=False)
    assert found.forms["plain"].identical == 1


def test_windows_can_be_left_out_and_are_another_run(tiny_llama: Path, tmp_path: Path) -> None:
    config = SETTINGS.model_copy(update={"windows": False})
    engine = LoraFinetuneEngine(_data(), base_model=tiny_llama, output_dir=tmp_path, config=config)
    assert _steps(engine) == 6
    assert read_card(engine.adapter).list_rules  # serving may still ask window by window
    assert engine.get_finetuned_model().windows == 0
    with pytest.raises(ConfigurationError, match="windows"):
        LoraFinetuneEngine(_data(), base_model=tiny_llama, output_dir=tmp_path, config=SETTINGS).finetune()


def test_windows_that_cannot_be_made_are_an_error_where_they_are_wanted(
    tiny_llama: Path, tmp_path: Path
) -> None:
    data = FinetuneDataset.from_pairs([(f"Is {n} even?", {"even": n % 2 == 0}) for n in range(4)])
    config = SETTINGS.model_copy(update={"windows": True})
    engine = LoraFinetuneEngine(data, base_model=tiny_llama, output_dir=tmp_path, config=config)
    with pytest.raises(ConfigurationError, match="lists of 20 items"):
        engine.finetune()
    assert check(data, base_model=tiny_llama).window_rows == 0


def test_the_schema_text_of_a_capture_is_no_part_of_the_text(tiny_llama: Path, tmp_path: Path) -> None:
    rows: list[Example] = [render(row, "text") for row in _data()]
    assert all("names" in json.dumps([m.wire() for m in row.messages]) for row in rows)
    engine = LoraFinetuneEngine(rows, base_model=tiny_llama, output_dir=tmp_path, config=SETTINGS)
    assert _steps(engine) > 6
    (rules,) = read_card(engine.adapter).list_rules.values()
    assert rules.frame.split("Ada came. Bo left.") == ("", "Ada came. Bo left.", "")


def test_eval_reads_texts_as_serving_does_unless_it_is_told_otherwise(
    tiny_llama: Path, tmp_path: Path
) -> None:
    engine = LoraFinetuneEngine(_data(), base_model=tiny_llama, output_dir=tmp_path / "run", config=SETTINGS)
    engine.finetune()
    rows = _data(2).save(tmp_path / "rows.jsonl")
    ask = ["eval", str(tmp_path / "run"), str(rows), "--no-base", "--output", str(tmp_path / "scores")]
    assert CliRunner().invoke(app, ask).exit_code == 0
    whole = CliRunner().invoke(app, [*ask, "--windows", "0"])
    assert whole.exit_code == 1
    assert "another windows" in whole.output
