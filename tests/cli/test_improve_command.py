"""``finetune-structured improve`` and ``rollback``: the next round of a run, and the way back."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from llama_index_finetune_structured import FinetuneDataset, LoraLLM
from llama_index_finetune_structured.cli import app
from llama_index_finetune_structured.cli import improve as improve_command
from tests.cli.conftest import Call
from tests.tuning.test_improve import capture
from tests.tuning.test_tune import songs


def test_a_new_version_its_repetition_and_the_way_back(tiny_llama: Path, tmp_path: Path, call: Call) -> None:
    run, rows = tmp_path / "run", tmp_path / "handed.jsonl"
    songs(12).save(tmp_path / "rows.jsonl")
    call("tune", str(tmp_path / "rows.jsonl"), "--base-model", str(tiny_llama), "--output", str(run))
    FinetuneDataset(capture()).save(rows)
    kept = call("improve", str(run), str(rows))
    assert (kept["version"], kept["promoted"], kept["serves"]) == ("0002", False, "0001")
    assert (kept["taken"], kept["not_taken"]) == (6, {})
    assert "1/3 6 of 6 rows are new" in kept["stderr"]
    done = call("improve", str(run), str(rows), "--margin", "1")
    assert (done["version"], done["promoted"], done["serves"]) == ("0002", True, "0002")
    assert set(done["systems"]) == {"current", "candidate"}
    assert LoraLLM.from_adapter(run).adapter == run / "versions" / "0002" / "adapter"
    shown = CliRunner().invoke(app, ["improve", str(run), str(rows), "--margin", "1"])
    assert "Version 0002 is promoted: it is not worse by more than" in shown.stdout
    assert call("report", str(run / "versions" / "0002"))["examples"] == done["examples"]
    assert call("rollback", str(run))["serves"] == "0001"
    assert "no version before" in call("rollback", str(run), code=1)["error"]
    assert "nothing new" in call("improve", str(run), str(tmp_path / "rows.jsonl"), code=1)["error"]


def test_ctrl_c_says_that_improve_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(improve_command, "run_improvement", stopped)
    result = CliRunner().invoke(app, ["improve", str(tmp_path), str(tmp_path / "rows.jsonl")])
    assert result.exit_code == 130
    assert "run the same command again" in result.stderr
