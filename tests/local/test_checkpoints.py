"""Checkpoints are written atomically, and incomplete ones are skipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llama_index_finetune_structured.errors import CheckpointError
from llama_index_finetune_structured.files import write_json
from llama_index_finetune_structured.local.train.checkpoints import (
    newest_checkpoint,
    save_checkpoint,
)


def _save(folder: Path, step: int) -> None:
    save_checkpoint(folder, step, {"weight": torch.full((4,), float(step))}, {"note": f"step {step}"})


def test_the_newest_is_read_back_and_two_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        _save(tmp_path, step)
    tensors, state = newest_checkpoint(tmp_path) or ({}, {})
    assert (state["step"], state["note"], tensors["weight"].tolist()) == (15, "step 15", [15.0] * 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-00000010", "checkpoint-00000015"]


@pytest.mark.parametrize("damage", ["truncated tensors", "no state", "state of bytes", "empty folder"])
def test_a_broken_checkpoint_is_passed_over_for_an_older_one(tmp_path: Path, damage: str) -> None:
    _save(tmp_path, 5)
    _save(tmp_path, 10)
    newest = tmp_path / "checkpoint-00000010"
    if damage == "truncated tensors":
        tensors = newest / "state.safetensors"
        tensors.write_bytes(tensors.read_bytes()[:-7])
    elif damage == "no state":
        (newest / "state.json").unlink()
    elif damage == "state of bytes":
        (newest / "state.json").write_bytes(b"\x00\xff")
    else:
        for file in newest.iterdir():
            file.unlink()
    _, state = newest_checkpoint(tmp_path) or ({}, {})
    assert state["step"] == 5


def test_an_unwritable_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(CheckpointError, match="could not be written"):
        _save(tmp_path / "taken", 1)


def test_json_is_replaced_whole_or_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["card.json"]
