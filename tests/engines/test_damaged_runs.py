"""A run with damaged files ends in the bytes of the undisturbed run or in a clear error, never in other bytes."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_index_finetune_structured import LoraFinetuneEngine, LoraSettings
from llama_index_finetune_structured.checksums import with_checksum
from llama_index_finetune_structured.errors import ConfigurationError, EngineError, FinetuneStructuredError
from llama_index_finetune_structured.files import read_json
from llama_index_finetune_structured.local.train.checkpoints import newest_checkpoint
from tests import exporting

SETTINGS = LoraSettings(rank=1, alpha=2, batch_size=2, epochs=2, checkpoint_steps=1)
CHECKED = ("adapter_model.safetensors", "adapter_config.json", "finetune_structured.json")


@dataclass(frozen=True)
class Runs:
    """A finished run, and the same run stopped after the third of its four steps."""

    base: Path
    finished: Path
    stopped: Path

    def engine(self, output: Path) -> LoraFinetuneEngine:
        return LoraFinetuneEngine(
            exporting.colours(), base_model=self.base, output_dir=output, config=SETTINGS
        )

    def files(self, run: Path) -> list[Path]:
        return sorted(p.relative_to(run) for p in run.rglob("*") if p.is_file() and p.name != ".lock")


def _weights(run: Path) -> bytes:
    return (run / "adapter" / CHECKED[0]).read_bytes()


@pytest.fixture(scope="module")
def runs(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    made = Runs(tiny_llama, folder / "finished", folder / "stopped")
    whole = made.engine(made.finished)
    whole.finetune()
    other = made.engine(made.stopped)
    trainer = other._trainer(other._training_rows()[0])

    def stop(entry: dict[str, float]) -> None:
        if entry["step"] == 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        trainer.run((), stop)
    assert sorted(p.name[-1] for p in (made.stopped / "checkpoints").iterdir()) == ["2", "3"]
    return made


def _goes_on(runs: Runs, source: Path, output: Path, damage: Callable[[Path], None]) -> None:
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(source, output)
    damage(output)
    engine = runs.engine(output)
    with contextlib.suppress(FinetuneStructuredError):
        job = engine.get_current_job()
        assert job.status != "succeeded" or _weights(output) == _weights(runs.finished)
        engine.finetune()
        assert _weights(output) == _weights(runs.finished)
        assert engine.get_current_job().status == "succeeded"


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), finished=st.booleans())
def test_one_flipped_bit_or_a_cut_anywhere_changes_no_byte_of_the_result(
    runs: Runs, tmp_path: Path, data: st.DataObject, finished: bool
) -> None:
    source = runs.finished if finished else runs.stopped
    file = data.draw(st.sampled_from(runs.files(source)))
    size = (source / file).stat().st_size
    at, bit, cut = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, 7)), data.draw(st.booleans())

    def damage(output: Path) -> None:
        content = bytearray((output / file).read_bytes())
        if cut:
            del content[at:]
        else:
            content[at] ^= 1 << bit
        (output / file).write_bytes(content)

    _goes_on(runs, source, tmp_path / "run", damage)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), finished=st.booleans())
def test_two_files_exchanged_change_no_byte_of_the_result(
    runs: Runs, tmp_path: Path, data: st.DataObject, finished: bool
) -> None:
    source = runs.finished if finished else runs.stopped
    one, other = data.draw(st.lists(st.sampled_from(runs.files(source)), min_size=2, max_size=2, unique=True))

    def exchange(output: Path) -> None:
        (output / one).rename(output / "held")
        (output / other).rename(output / one)
        (output / "held").rename(output / other)

    _goes_on(runs, source, tmp_path / "run", exchange)


def test_a_flipped_bit_of_any_byte_of_a_checkpoints_state_and_header_is_noticed(
    runs: Runs, tmp_path: Path
) -> None:
    shutil.copytree(runs.stopped / "checkpoints", tmp_path / "checkpoints")
    for left in (tmp_path / "checkpoints").iterdir():
        if not left.name.endswith("3"):
            shutil.rmtree(left)
    (folder,) = (tmp_path / "checkpoints").iterdir()
    expected = newest_checkpoint(tmp_path / "checkpoints")
    assert expected is not None
    logging.disable(logging.WARNING)
    try:
        for name in ("state.json", "state.safetensors"):
            content = (folder / name).read_bytes()
            for at in range(0, min(len(content), 1500)):
                for bit in (at % 8, 5):
                    changed = bytearray(content)
                    changed[at] ^= 1 << bit
                    (folder / name).write_bytes(changed)
                    found = newest_checkpoint(tmp_path / "checkpoints")
                    # A number's e and E, and white space, are the same JSON.
                    assert found is None or (name, found[1]) == ("state.json", expected[1]), (name, at, bit)
            (folder / name).write_bytes(content)
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("how", ["cut", "missing", "one bit"])
def test_a_damaged_adapter_is_no_success_and_is_written_again_from_the_checkpoint(
    runs: Runs, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, how: str
) -> None:
    output = tmp_path / "run"
    shutil.copytree(runs.finished, output)
    file = output / "adapter" / name
    content = bytearray(file.read_bytes())
    if how == "missing":
        file.unlink()
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content[:-9] if how == "cut" else content)
    engine = runs.engine(output)
    with caplog.at_level(logging.WARNING):
        job = engine.get_current_job()
    assert (job.status, job.adapter, job.steps) == ("resumable", None, 4)
    assert f"{file} is {'missing' if how == 'missing' else 'damaged'}" in caplog.text
    with pytest.raises(EngineError, match=r"no finished adapter; call finetune\(\) first"):
        engine.get_finetuned_model()
    engine.finetune()
    assert engine.get_current_job().status == "succeeded"
    assert _weights(output) == _weights(runs.finished)


def test_a_note_in_the_adapters_readme_is_no_damage(runs: Runs, tmp_path: Path) -> None:
    shutil.copytree(runs.finished, tmp_path / "run")
    (tmp_path / "run" / "adapter" / "README.md").write_text("my notes")
    assert runs.engine(tmp_path / "run").get_current_job().status == "succeeded"


def test_a_damaged_adapter_with_a_file_of_the_users_own_is_left_alone(runs: Runs, tmp_path: Path) -> None:
    shutil.copytree(runs.finished, tmp_path / "run")
    adapter = tmp_path / "run" / "adapter"
    (adapter / "adapter_config.json").unlink()
    (adapter / "mine.txt").write_text("precious")
    with pytest.raises(ConfigurationError, match="choose another output folder"):
        runs.engine(tmp_path / "run").finetune()
    assert (adapter / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize("name", ["training_log.json", "run.json"])
def test_a_damaged_log_or_run_file_is_named_and_written_again(
    runs: Runs, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    output = tmp_path / "run"
    shutil.copytree(runs.finished if name == "training_log.json" else runs.stopped, output)
    file = output / name
    file.write_text(file.read_text().replace("0", "1", 1))
    engine = runs.engine(output)
    with caplog.at_level(logging.WARNING):
        assert engine.get_current_job().status == "resumable"
        engine.finetune()
    assert f"{file} is damaged (its content does not match its checksum)" in caplog.text
    assert engine.get_current_job().status == "succeeded"
    assert _weights(output) == _weights(runs.finished)


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_checkpoint_of_another_shape_is_passed_over_although_its_checksums_are_right(
    runs: Runs, tmp_path: Path, caplog: pytest.LogCaptureFixture, damaged: int
) -> None:
    output = tmp_path / "run"
    shutil.copytree(runs.stopped, output)
    for folder in sorted((output / "checkpoints").iterdir())[-damaged:]:
        state = read_json(folder / "state.json")
        state.pop("sha256")
        state.pop("log" if folder.name.endswith("3") else "schedule")
        (folder / "state.json").write_text(json.dumps(with_checksum(state)))
    with caplog.at_level(logging.WARNING):
        runs.engine(output).finetune()
    assert "its state has no log" in caplog.text
    assert f"Training goes on from {'step 2' if damaged == 1 else 'the beginning'}" in caplog.text
    assert _weights(output) == _weights(runs.finished)
