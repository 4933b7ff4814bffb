"""A run is right or ends in an error of the package, whatever the process, threads and files around it do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load, save_file

from llama_index_finetune_structured import LoraFinetuneEngine, LoraSettings
from llama_index_finetune_structured.engines import lora
from llama_index_finetune_structured.errors import CheckpointError, ConfigurationError
from llama_index_finetune_structured.files import read_json
from llama_index_finetune_structured.local.model import adapter
from llama_index_finetune_structured.local.model.prompts import TokenRow
from llama_index_finetune_structured.local.train import trainer as training
from llama_index_finetune_structured.local.train.checkpoints import newest_checkpoint
from tests import exporting

SETTINGS = LoraSettings(rank=2, alpha=4, batch_size=2, epochs=2, checkpoint_steps=1)


def _engine(base: Path, output: Path, rows: int = 4) -> LoraFinetuneEngine:
    return LoraFinetuneEngine(exporting.colours(rows), base_model=base, output_dir=output, config=SETTINGS)


def _weights(output: Path) -> bytes:
    return (output / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    _engine(tiny_llama, output).finetune()
    return output


def _at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    own = training.Trainer._train_step

    def acting(trainer: training.Trainer, batch: list[TokenRow]) -> dict[str, float]:
        entry = own(trainer, batch)
        if entry["step"] == step:
            act()
        return entry

    monkeypatch.setattr(training.Trainer, "_train_step", acting)


@contextmanager
def _gradients_off_for_all() -> Iterator[None]:
    torch.set_grad_enabled(False)
    try:
        yield
    finally:
        torch.set_grad_enabled(True)


@pytest.mark.parametrize("around", [_gradients_off_for_all, torch.inference_mode])
def test_a_callers_modes_of_torch_change_no_byte(
    tiny_llama: Path, whole: Path, tmp_path: Path, around: Callable[[], AbstractContextManager[None]]
) -> None:
    shutil.copytree(whole / "checkpoints", tmp_path / "resumed" / "checkpoints")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "checkpoint-00000004")
    with around():
        for name in ("new", "resumed"):
            _engine(tiny_llama, tmp_path / name).finetune()
    assert _weights(tmp_path / "new") == _weights(tmp_path / "resumed") == _weights(whole)


def test_engines_in_several_threads_write_the_bytes_that_each_writes_alone(
    tiny_llama: Path, whole: Path, tmp_path: Path
) -> None:
    outputs = [tmp_path / str(n) for n in range(4)]
    threads = [threading.Thread(target=_engine(tiny_llama, output).finetune) for output in outputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {_weights(output) for output in outputs} == {_weights(whole)}


def test_where_ctrl_c_is_ignored_it_does_not_stop_training(
    tiny_llama: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _at_step(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    own = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _engine(tiny_llama, tmp_path).finetune()
    finally:
        signal.signal(signal.SIGINT, own)
    assert _weights(tmp_path) == _weights(whole)


def test_training_ends_well_inside_a_program_that_handles_ctrl_c_itself(
    tiny_llama: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "getsignal", lambda _: None)  # as for a handler not set from Python
    _engine(tiny_llama, tmp_path).finetune()
    assert _weights(tmp_path) == _weights(whole)


def test_a_pipe_in_place_of_a_checkpoints_tensors_is_no_wait(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "checkpoints", tmp_path, dirs_exist_ok=True)
    tensors = tmp_path / "checkpoint-00000004" / "state.safetensors"
    tensors.unlink()
    os.mkfifo(tensors)
    found: list[int] = []

    def read() -> None:
        newest = newest_checkpoint(tmp_path)
        found.append(newest[1]["step"] if newest else 0)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(60)
    assert found == [3]


@pytest.mark.parametrize("gone", ["", "adapter_model.safetensors", "adapter_config.json"])
def test_an_adapter_that_is_gone_before_the_run_is_marked_as_finished_is_no_success(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    own = adapter.save_adapter

    def save(model: object, folder: Path, card: adapter.AdapterCard) -> None:
        own(model, folder, card)
        if gone:
            (folder / gone).unlink()
        else:
            shutil.rmtree(folder)

    monkeypatch.setattr(lora, "save_adapter", save)
    engine = _engine(tiny_llama, tmp_path)
    with pytest.raises(CheckpointError, match=r"training_log\.json: could not be written .*adapter"):
        engine.finetune()
    assert not (tmp_path / "training_log.json").exists()


def test_a_notebooks_own_folder_in_the_adapter_is_no_error(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = adapter.save_adapter

    def save(model: object, folder: Path, card: adapter.AdapterCard) -> None:
        own(model, folder, card)
        (folder / ".ipynb_checkpoints").mkdir()

    monkeypatch.setattr(lora, "save_adapter", save)
    engine = _engine(tiny_llama, tmp_path)
    engine.finetune()
    assert engine.get_current_job().status == "succeeded"


@pytest.mark.parametrize("record", ["whole", "missing", "of an earlier version"])
def test_checkpoints_that_nothing_says_are_of_this_run_are_never_replaced(
    tiny_llama: Path, whole: Path, tmp_path: Path, record: str
) -> None:
    shutil.copytree(whole / "checkpoints", tmp_path / "checkpoints")
    if record != "missing":
        shutil.copy(whole / "run.json", tmp_path)
    for state in tmp_path.glob("checkpoints/*/state.json"):
        content = read_json(state)
        del content["sha256"], content["tensors sha256"]
        state.write_text(json.dumps(content))
    if record == "of an earlier version":
        run = read_json(tmp_path / "run.json")
        del run["sha256"]
        (tmp_path / "run.json").write_text(json.dumps(run))
    before = sorted(
        (path, path.read_bytes())
        for path in tmp_path.rglob("*.*")
        if path.suffix != ".lock" and path.is_file()
    )
    with pytest.raises(
        ConfigurationError, match="holds checkpoints that cannot be used, and may be of another run"
    ):
        _engine(tiny_llama, tmp_path, rows=3).finetune()
    assert before == [(path, path.read_bytes()) for path, _ in before]


def test_a_checkpoint_of_an_earlier_version_is_said_to_be_one(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(whole / "checkpoints", tmp_path, dirs_exist_ok=True)
    state = tmp_path / "checkpoint-00000004" / "state.json"
    content = read_json(state)
    del content["sha256"]
    state.write_text(json.dumps(content))
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest[1]["step"] == 3
    assert "it has no checksum: an earlier version wrote it" in caplog.text


def test_a_base_that_changes_before_training_starts_is_not_trained_on(
    tiny_llama: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_llama, base)
    engine = _engine(base, tmp_path / "run")
    weights = load((base / "model.safetensors").read_bytes())
    save_file(
        {name: weight * 2 for name, weight in weights.items()},
        base / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ConfigurationError, match=r"was changed while it was in use, in weights \(model"):
        engine.finetune()


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"])
@pytest.mark.parametrize("value", ["2", "auto"])
def test_a_variable_of_a_launcher_without_the_launcher_is_named(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())  # accelerate sets variables, too
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=rf"{variable}={value} is set.*accelerate launch"):
        _engine(tiny_llama, tmp_path).finetune()


def test_a_batch_larger_than_any_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match="batch_size"):
        LoraSettings(batch_size=10**400)
