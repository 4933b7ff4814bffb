"""``finetune-structured export``: the file, the commands to serve it, and exit code 1 where parity fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llama_index_finetune_structured.cli import app
from llama_index_finetune_structured.cli.export import export
from llama_index_finetune_structured.errors import ConfigurationError, DatasetError
from llama_index_finetune_structured.local.model.adapter import read_card, write_card
from llama_index_finetune_structured.local.model.base_files import hashed_files
from tests import exporting


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export-command")
    exporting.train(exporting.save_base("llama", folder / "base"), folder / "run")
    exporting.colours().save(folder / "rows.jsonl")
    return folder / "run"


def _call(*arguments: object, code: int = 0) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["export", *map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == code, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_an_export_at_parity_is_written_and_says_how_to_serve_it(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "tuned"
    found = _call(run, output, "--dtype", "f32", "--check", run.parent / "rows.jsonl", "--name", "colours")
    assert (output / "model.safetensors").is_file()
    assert found["bytes"] > 100_000
    assert f"vllm serve {output} --served-model-name colours" in found["serve"]["vllm"]
    assert found["parity"]["forms"]["merged"]["agreement"] == 1.0
    assert found["parity"]["failures"] == []


def test_an_export_that_answers_otherwise_is_exit_code_1(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_the_base(adapter: Path, target: Path, **_: Any) -> Path:
        shutil.copytree(run.parent / "base", target)
        write_card(target, read_card(adapter), hashed_files(target))
        return target

    monkeypatch.setattr("llama_index_finetune_structured.cli.export.export_adapter", write_the_base)
    found = _call(run, tmp_path / "tuned", "--check", run.parent / "rows.jsonl", code=1)
    assert "fields agree with the adapter's in" in found["parity"]["failures"][0]


def test_people_see_the_table_and_the_commands(run: Path, tmp_path: Path) -> None:
    arguments = ["export", str(run), str(tmp_path / "tuned.gguf"), "--format", "gguf"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "gguf, " in result.stdout
    assert "llama-server --model" in result.stdout
    assert "Example: finetune-structured export" in CliRunner().invoke(app, ["export", "--help"]).stdout


def test_mistakes_are_refused_before_anything_is_written(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    bad = tmp_path / "bad.jsonl"
    bad.write_text("no json\n")
    with pytest.raises(ConfigurationError, match="no adapter there"):
        export(tmp_path, output)
    with pytest.raises(DatasetError, match=r"bad\.jsonl:1"):
        export(run, output, check=bad)
    with pytest.raises(ConfigurationError, match="gguf-base holds only the base model"):
        export(run, output, format="gguf-base", check=run.parent / "rows.jsonl")
    assert not output.exists()
