"""``finetune-structured select``: the rows that a tuned model would learn most from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama_index_finetune_structured import FinetuneDataset
from tests import exporting
from tests.cli.conftest import Call


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("select")
    exporting.train(exporting.save_base("llama", folder / "base"), folder / "run")
    return folder / "run"


def test_questions_and_messages_are_answered_once_and_the_least_sure_written(
    model: Path, tmp_path: Path, call: Call
) -> None:
    output = tmp_path / "to-label.jsonl"
    questions = [f"Describe colour {n}." for n in range(5)]
    (tmp_path / "plain.txt").write_text("\n".join([*questions, ""]), encoding="utf-8")
    line = ["select", str(model), str(tmp_path / "plain.txt"), "-n", "2", "--output", str(output)]
    made = call(*line)
    assert (made["selected"], made["rows"]) == (2, 5)
    rows = list(FinetuneDataset.load(output))
    assert all(row.query in questions and "student_probability" in row.metadata for row in rows)
    (log,) = (tmp_path / "to-label.answers").rglob("*.jsonl")
    before = log.read_bytes()
    call(*line)
    assert log.read_bytes() == before, "no answer is generated twice"
    chats = [json.dumps({"messages": [{"role": "user", "content": text}]}) for text in questions]
    (tmp_path / "chats.jsonl").write_text("\n".join([*chats, ""]), encoding="utf-8")
    line[2] = str(tmp_path / "chats.jsonl")
    assert call(*line)["selected"] == 2
    assert [row.query for row in FinetuneDataset.load(output)] == [row.query for row in rows]


def test_a_base_model_and_a_row_of_no_form_are_refused(model: Path, tmp_path: Path, call: Call) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    refused = call("select", str(model), str(tmp_path / "rows.jsonl"), code=1)
    assert "rows.jsonl:1" in refused["error"]
    refused = call("select", "smollm", str(tmp_path / "rows.jsonl"), code=1)
    assert "no training run" in refused["error"]
