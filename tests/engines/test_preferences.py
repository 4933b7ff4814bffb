"""Training that makes accepted answers likelier than rejected ones to the same prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from safetensors.torch import load_file
from typer.testing import CliRunner

from llama_index_finetune_structured import (
    ConfigurationError,
    DatasetError,
    FinetuneDataset,
    LoraFinetuneEngine,
    LoraSettings,
)
from llama_index_finetune_structured.cli import app
from llama_index_finetune_structured.example import Example, Message
from llama_index_finetune_structured.formats import read_preferences
from llama_index_finetune_structured.local.model.adapter import read_card

SETTINGS = LoraSettings(rank=4, batch_size=2, epochs=2)


class Colour(BaseModel):
    name: str
    warm: bool


def _rows(rows: int) -> FinetuneDataset:
    pairs = [(f"Describe colour {n}.", Colour(name=f"c{n}", warm=n % 2 == 0)) for n in range(rows)]
    return FinetuneDataset.from_pairs(pairs, output_cls=Colour)


def _instead(example: Example, text: str) -> Example:
    return Example(**{**dict(example), "answer": Message(role="assistant", content=text)})


def _rejects(rows: FinetuneDataset) -> list[Example]:
    """One answer of each kind: wrong, not JSON, one to no row, and the accepted one in another spelling."""
    wrong, broken, *_, last = list(rows)
    foreign = Example(messages=(Message(role="user", content="?"),), answer=last.answer)
    return [
        _instead(wrong, '{"name": "x", "warm": true}'),
        _instead(broken, '{"name": "c1", "warm'),
        foreign,
        _instead(last, json.dumps(json.loads(last.answer_text()), indent=2)),
    ]


def _engine(base: Path, output: Path, **options: Any) -> LoraFinetuneEngine:
    given: dict[str, Any] = {"config": SETTINGS, **options}
    return LoraFinetuneEngine(given.pop("data", _rows(5)), base_model=base, output_dir=output, **given)


@pytest.fixture(scope="module")
def trained(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    _engine(tiny_llama, folder).finetune()
    return folder


def test_pairs_are_trained_from_an_adapter_and_its_model_answers(
    tiny_llama: Path, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = _rows(5)
    engine = _engine(tiny_llama, tmp_path / "run", start_from=trained, rejects=_rejects(rows), config=None)
    engine.finetune()
    assert [example.id for example in engine.examples] == [rows[0].id, rows[1].id, rows[4].id]
    assert "2 rows without a rejected answer to their prompt are left out" in caplog.text
    assert (
        "1 rejected answers are left out: longer than training takes, or written as the accepted"
        in caplog.text
    )
    log = json.loads((tmp_path / "run" / "training_log.json").read_text())
    assert log["steps"][0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert log["steps"][-1]["loss"] < log["steps"][0]["loss"]
    weights = "adapter/adapter_model.safetensors"
    assert load_file(tmp_path / "run" / weights).keys() == load_file(trained / weights).keys()
    assert (tmp_path / "run" / weights).read_bytes() != (trained / weights).read_bytes()
    assert read_card(engine.adapter).rows == 3
    assert engine.get_finetuned_model().complete("Describe colour 1.").text


def test_held_out_pairs_are_those_of_the_same_rejects(tiny_llama: Path, tmp_path: Path) -> None:
    rows = _rows(5)
    engine = _engine(
        tiny_llama, tmp_path, data=rows[:1], validation=rows[1:2], rejects=_rejects(rows), config=SETTINGS
    )
    engine.finetune()
    assert engine.get_current_job().validation_loss == pytest.approx(0.6931, abs=1e-2)


def test_another_set_of_rejects_is_another_run(tiny_llama: Path, tmp_path: Path) -> None:
    rejects = _rejects(_rows(5))
    _engine(tiny_llama, tmp_path, rejects=rejects[:1]).finetune()
    with pytest.raises(ConfigurationError, match="of another run"):
        _engine(tiny_llama, tmp_path, rejects=rejects[:2]).finetune()
    with pytest.raises(ConfigurationError, match="of another run"):
        _engine(tiny_llama, tmp_path).finetune()


def test_what_cannot_be_paired_is_an_error(tiny_llama: Path, tmp_path: Path) -> None:
    rejects = _rejects(_rows(5))
    with pytest.raises(DatasetError, match="no rejected answer has an accepted answer to the same prompt"):
        _engine(tiny_llama, tmp_path, rejects=rejects[2:3])
    with pytest.raises(DatasetError, match="no rejected answer is left to train on"):
        _engine(tiny_llama, tmp_path, rejects=rejects[3:]).finetune()


def test_a_file_of_preference_lines_is_read_and_trained_from_the_shell(
    tiny_llama: Path, tmp_path: Path
) -> None:
    rows = FinetuneDataset(Example(messages=row.messages, answer=row.answer) for row in _rows(4))
    path = rows.save_preferences(tmp_path / "pairs.jsonl", [_instead(row, "no") for row in rows])
    accepted, rejected = read_preferences(path)
    assert [row.answer_text() for row in accepted] == [row.answer_text() for row in rows]
    assert [row.answer_text() for row in rejected] == ["no"] * 4
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    FinetuneDataset(accepted).save(good)
    FinetuneDataset(rejected).save(bad)
    command = ["train", str(good), "--rejects", str(bad), "--base-model", str(tiny_llama)]
    done = CliRunner().invoke(
        app, [*command, "--output", str(tmp_path / "run"), "--rank", "4", "--beta", "0.3"]
    )
    assert done.exit_code == 0, done.output
    assert read_card(tmp_path / "run" / "adapter").rows == 4
    with path.open("a") as file:
        file.write('{"input": {"messages": []}, "preferred_output": []}\n')
    with pytest.raises(DatasetError, match=r"pairs\.jsonl:5: preferred_output and non_preferred_output"):
        read_preferences(path)
