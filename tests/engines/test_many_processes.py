"""``accelerate launch`` on one engine: two processes train the same as one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from llama_index_finetune_structured import LoraFinetuneEngine, LoraSettings
from llama_index_finetune_structured.errors import ConfigurationError
from tests import exporting

SETTINGS = LoraSettings(rank=4, alpha=8, batch_size=2, epochs=2, checkpoint_steps=2)
_ROOT = str(Path(__file__).parents[2])
_TRAIN = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tests.engines.test_many_processes import engine
engine(Path(sys.argv[2]), Path(sys.argv[3])).finetune()
print("trained")
"""


def engine(base: Path, output: Path, config: LoraSettings = SETTINGS) -> LoraFinetuneEngine:
    """Five rows in batches of two: in the last batch of an epoch the second process has no row."""
    data = exporting.colours(5)
    return LoraFinetuneEngine(
        data, validation=exporting.colours(3), base_model=base, output_dir=output, config=config
    )


def thrifty_engine(base: Path, output: Path) -> LoraFinetuneEngine:
    """As ``engine``, with checkpointed layers and one row at a time."""
    return engine(base, output, SETTINGS.model_copy(update={"checkpoint_layers": True, "piece_tokens": 1}))


def _launch(base: Path, output: Path, program: str = _TRAIN) -> subprocess.Popen[str]:
    """Two CPU processes over gloo. ``--multi_gpu`` is accelerate's name for several processes on a machine."""
    script = output.parent / "train.py"
    script.write_text(program)
    launch = (
        "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    )
    options = "--dynamo_backend no --main_process_port 0"
    return subprocess.Popen(
        [sys.executable, *launch.split(), *options.split(), script, _ROOT, base, output],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def _end(process: subprocess.Popen[str]) -> tuple[str, str]:
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    return output, errors


@pytest.mark.parametrize("made", [engine, thrifty_engine])
def test_two_processes_follow_the_loss_curve_of_one(
    tiny_llama: Path, tmp_path: Path, made: Callable[[Path, Path], LoraFinetuneEngine]
) -> None:
    program = _TRAIN.replace("import engine", f"import {made.__name__} as engine")
    launched = _launch(tiny_llama, tmp_path / "two", program)
    alone = engine(tiny_llama, tmp_path / "one")
    alone.finetune()
    output, errors = _end(launched)
    assert output.count("trained") == 2
    assert errors.count("| 0/6 ") == 1, "only the first process shows progress"
    one, two = (json.loads((tmp_path / run / "training_log.json").read_text()) for run in ("one", "two"))
    for key in ("steps", "validation"):
        assert [entry["loss"] for entry in two[key]] == pytest.approx(
            [entry["loss"] for entry in one[key]], abs=1e-5
        )
    weights = [load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("one", "two")]
    assert all((weights[0][name] - weight).abs().max() < 1e-5 for name, weight in weights[1].items())
    assert not list(tmp_path.glob("two/**/.unfinished*"))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_launch_goes_on_to_the_bytes_of_an_undisturbed_one(
    tiny_llama: Path, tmp_path: Path, how: signal.Signals
) -> None:
    _end(_launch(tiny_llama, tmp_path / "whole"))
    stopped = _launch(tiny_llama, tmp_path / "stopped")
    while stopped.poll() is None and not list(tmp_path.glob("stopped/checkpoints/checkpoint-*")):
        pass
    if how == signal.SIGKILL:
        os.killpg(stopped.pid, how)
    else:
        stopped.send_signal(how)
    stopped.communicate(timeout=900)
    _end(_launch(tiny_llama, tmp_path / "stopped"))
    whole, resumed = (
        (tmp_path / run / "adapter" / "adapter_model.safetensors").read_bytes()
        for run in ("whole", "stopped")
    )
    assert whole == resumed


def test_a_launch_that_would_shard_the_model_is_refused(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigurationError, match=r"configured for FSDP.*--multi_gpu"):
        engine(tiny_llama, tmp_path / "run").finetune()


_DIVERGE = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import torch
from llama_index_finetune_structured.errors import EngineError
from llama_index_finetune_structured.local.train.loss import AnswerLoss
from llama_index_finetune_structured.local.train.distributed import DistributedRun
from tests.engines.test_many_processes import engine
own, calls = AnswerLoss.backward, []
def backward(loss, rows):
    total = own(loss, rows)
    calls.append(rows)
    return total * float("nan") if DistributedRun().rank == 1 and len(calls) == 2 else total
AnswerLoss.backward = backward
try:
    engine(Path(sys.argv[2]), Path(sys.argv[3])).finetune()
except EngineError as error:
    # One write: the processes share an unbuffered pipe, where print writes each argument by itself.
    print(f"stopped: {error}", flush=True)
"""


def test_a_loss_that_is_not_finite_in_one_process_stops_all_of_them_at_the_same_step(
    tiny_llama: Path, tmp_path: Path
) -> None:
    output, _ = _end(_launch(tiny_llama, tmp_path / "two", _DIVERGE))
    assert output.count("stopped: step 2 of 6: the loss is nan") == 2
    assert not (tmp_path / "two" / "adapter").exists()
