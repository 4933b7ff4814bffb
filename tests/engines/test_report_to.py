"""``report_to`` logs a run where the user reads logs, and never ends it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate import tracking
from accelerate.state import PartialState
from pydantic import ValidationError

from llama_index_finetune_structured import LoraFinetuneEngine, LoraSettings
from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.local.train import trackers
from tests import exporting

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed"
)


@pytest.fixture(autouse=True)
def _state() -> Iterator[None]:
    yield
    PartialState._reset_state()


def _engine(base: Path, output: Path, *report_to: Any) -> LoraFinetuneEngine:
    config = LoraSettings(rank=4, batch_size=2, epochs=2, checkpoint_steps=2, report_to=report_to)
    return LoraFinetuneEngine(
        exporting.colours(8),
        validation=exporting.colours(2),
        base_model=base,
        output_dir=output,
        config=config,
    )


class Recorder:
    """A tracker in accelerate's form; ``fails_at``: the step at which its server is gone."""

    requires_logging_directory = False
    fails_at = 0

    def __init__(self, project: str, **names: str) -> None:
        self.project, self.names = project, names
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.config: dict[str, Any] = {}
        self.finished = 0
        MADE.append(self)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, float], step: int) -> None:
        if step == self.fails_at:
            raise ConnectionError("the server is gone")
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1


MADE: list[Recorder] = []


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Recorder]]:
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Recorder)
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["wandb"])
    MADE.clear()
    yield MADE
    Recorder.fails_at = 0


def test_every_step_and_held_out_loss_is_logged_at_its_step(
    tiny_llama: Path, tmp_path: Path, recorder: list[Recorder]
) -> None:
    engine = _engine(tiny_llama, tmp_path / "run", "wandb")
    engine.finetune()
    (made,) = recorder
    steps = [(step, values) for step, values in made.logged if "loss" in values]
    held_out = [(step, values["validation_loss"]) for step, values in made.logged if "loss" not in values]
    assert [step for step, _ in steps] == list(range(1, 9))
    assert all(values.keys() == {"loss", "learning_rate", "seconds"} for _, values in steps)
    assert [step for step, _ in held_out] == [4, 8]
    assert min(loss for _, loss in held_out) == engine.get_current_job().validation_loss
    assert made.names == {"name": "run"}
    assert made.config["rank"] == 4
    assert made.finished == 1


def test_a_resumed_run_logs_on_and_nothing_twice(
    tiny_llama: Path, tmp_path: Path, recorder: list[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _engine(tiny_llama, tmp_path / "run", "wandb")
    own = Recorder.log

    class Killed(BaseException):
        """No Ctrl-C, which would save first."""

    def kill(self: Recorder, values: dict[str, float], step: int) -> None:
        own(self, values, step)
        if step == 6:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "log", kill)
        with pytest.raises(Killed):
            first.finetune()
    _engine(tiny_llama, tmp_path / "run", "wandb").finetune()
    before, after = recorder
    assert (before.finished, after.finished) == (1, 1)
    assert [step for step, values in after.logged if "loss" in values] == [5, 6, 7, 8]
    assert [step for step, values in after.logged if "loss" not in values] == [8]


def test_a_tracker_that_fails_ends_alone(
    tiny_llama: Path, tmp_path: Path, recorder: list[Recorder], caplog: pytest.LogCaptureFixture
) -> None:
    Recorder.fails_at = 3
    engine = _engine(tiny_llama, tmp_path / "run", "wandb")
    engine.finetune()
    assert engine.get_current_job().status == "succeeded"
    assert caplog.text.count("report_to: wandb failed, and logs no more of this run: the server is gone") == 1
    assert [step for step, _ in recorder[0].logged] == [1, 2]


def test_a_log_changes_no_byte_of_the_adapter(
    tiny_llama: Path, tmp_path: Path, recorder: list[Recorder]
) -> None:
    _engine(tiny_llama, tmp_path / "logged", "wandb").finetune()
    _engine(tiny_llama, tmp_path / "plain").finetune()
    logged, plain = (
        (tmp_path / run / "adapter" / "adapter_model.safetensors").read_bytes() for run in ("logged", "plain")
    )
    assert logged == plain


def test_a_tracker_that_does_not_start_is_an_error(
    tiny_llama: Path, tmp_path: Path, recorder: list[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError("log in first")

    monkeypatch.setattr(Recorder, "store_init_configuration", refuse)
    with pytest.raises(ConfigurationError, match=r"'wandb' does not start.*log in first"):
        _engine(tiny_llama, tmp_path / "run", "wandb").finetune()


def test_a_missing_package_is_an_error_before_the_base_is_loaded(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [])
    monkeypatch.setattr("llama_index_finetune_structured.local.model.base_models.load_model", pytest.fail)
    with pytest.raises(ConfigurationError, match=r"package of 'mlflow' is not installed: pip install mlflow"):
        _engine(tiny_llama, tmp_path / "run", "mlflow").finetune()


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(ValidationError, match="report_to"):
        LoraSettings.model_validate({"report_to": ["visdom"]})


def test_every_tracker_of_the_settings_is_one_of_accelerates() -> None:
    names = trackers._RUN_NAMES.keys() | {"tensorboard"}
    assert names <= tracking.LOGGER_TYPE_TO_CLASS.keys() | {"trackio"}  # trackio: since accelerate 1.10
    assert LoraSettings(report_to=tuple(sorted(names))).report_to == tuple(sorted(names))


@needs_tensorboard
def test_tensorboard_reads_the_losses_of_a_run(tiny_llama: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-not-found, unused-ignore]
        EventAccumulator,
    )

    engine = _engine(tiny_llama, tmp_path / "run", "tensorboard")
    engine.finetune()
    events = EventAccumulator(str(tmp_path / "run" / "logs"))
    events.Reload()
    losses = events.Scalars("loss")
    assert [event.step for event in losses] == list(range(1, 9))
    assert losses[-1].value == pytest.approx(engine.get_current_job().loss)
    assert [event.step for event in events.Scalars("validation_loss")] == [4, 8]
    assert engine.get_current_job().status == "succeeded", "the logs' folder is no file of another run"
