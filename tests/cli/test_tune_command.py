"""``finetune-structured tune``: one command from rows to a scored model."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from llama_index_finetune_structured import LoraLLM
from llama_index_finetune_structured.cli import app
from llama_index_finetune_structured.cli import tune as tune_command
from tests.cli.conftest import Call
from tests.tuning.test_tune import songs


def test_a_run_its_repetition_and_another_one_in_the_same_folder(
    tiny_llama: Path, tmp_path: Path, call: Call
) -> None:
    songs(6).save(tmp_path / "rows.jsonl")
    line = ["tune", str(tmp_path / "rows.jsonl"), "--base-model", str(tiny_llama), "--output"]
    folder = tmp_path / "run"
    made = call(*line, str(folder))
    assert (made["model"], made["trained_on"] + made["held_out"]) == (str(folder), 6)
    assert set(made["systems"]) == {"base", "tuned"}
    assert "1/3 " in made["stderr"]
    assert LoraLLM.from_adapter(made["model"]).adapter == folder / "adapter"
    again = call(*line, str(folder))
    assert {**again, "stderr": ""} == {**made, "stderr": ""}
    refused = call(*line, str(folder), "--seed", "5", code=1)
    assert "differs in" in refused["error"]
    shown = CliRunner().invoke(app, [*line, str(folder)])
    assert shown.stdout.endswith(f"Model: {folder}\n")
    assert call("report", str(folder))["verdict"] == made["verdict"]


def test_a_class_on_the_command_line_gives_rows_their_schema(
    tiny_llama: Path, tmp_path: Path, call: Call
) -> None:
    songs(6).save(tmp_path / "chat.jsonl", "openai")
    (tmp_path / "song.yaml").write_text("name: Song\nfields: {title: string, seconds: integer}\n")
    line = [
        "tune",
        str(tmp_path / "chat.jsonl"),
        "--base-model",
        str(tiny_llama),
        "--output",
        str(tmp_path / "run"),
    ]
    made = call(*line, "--schema", str(tmp_path / "song.yaml"))
    assert set(made["systems"]["tuned"]["fields"]) == {"title", "seconds"}


def test_ctrl_c_says_that_the_same_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tune_command, "run_tuning", stopped)
    result = CliRunner().invoke(app, ["tune", str(tmp_path / "rows.jsonl")])
    assert result.exit_code == 130
    assert "run the same command again" in result.stderr
