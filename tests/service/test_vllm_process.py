"""The vLLM server that the service starts: it comes again when it dies, and never outlives the service."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llama_index_finetune_structured.cli import app as cli
from llama_index_finetune_structured.errors import ConfigurationError, EngineError
from llama_index_finetune_structured.local.model.base_models import resolve
from llama_index_finetune_structured.local.model.devices import has_accelerator
from llama_index_finetune_structured.service.vllm.server import RunningVllm, VllmChild
from tests.fakes import vllm_program

_HOLDER = """
import sys, time
from pathlib import Path
from llama_index_finetune_structured.local.model.base_models import resolve
from llama_index_finetune_structured.service.vllm.server import VllmChild
base, log, program = map(Path, sys.argv[1:])
child = VllmChild(resolve(str(base)), log, command=[str(program)])
child.start()
child.wait_ready()
print("ready", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "vllm"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {vllm_program.__file__} "$@"\n')
    path.chmod(0o700)
    return path


@pytest.fixture
def child(tiny_llama: Path, program: Path, tmp_path: Path) -> Iterator[VllmChild]:
    command = [str(program), "--dtype", "float32"]
    found = VllmChild(resolve(str(tiny_llama)), tmp_path / "vllm.log", command=command, rank=12, start_s=60)
    yield found
    found.end()


def pids(log: Path) -> list[int]:
    """The processes of the program, as it wrote them."""
    return [int(pid) for pid in log.read_text().split("pids")[1].split()[:2]]


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # the second: ended since the opening
        return True


def wait_until(condition: Callable[[], Any]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.05)


def test_it_serves_the_base_on_loopback_with_a_rank_that_vllm_knows(child: VllmChild, tmp_path: Path) -> None:
    child.start()
    child.wait_ready()
    written = (tmp_path / "vllm.log").read_text()
    assert "--host 127.0.0.1" in written
    assert "--max-lora-rank 16" in written
    assert "--dtype float32" in written
    assert child.key not in written, "other users of the machine see command lines"
    processes = pids(tmp_path / "vllm.log")
    child.end()
    wait_until(lambda: all(map(is_gone, processes)))


@pytest.mark.parametrize("given", [None, "0"])
def test_it_compiles_nothing_on_a_host_without_an_accelerator_unless_told(
    child: VllmChild, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    if given is not None:
        monkeypatch.setenv("TORCHDYNAMO_DISABLE", given)
    child.start()
    child.wait_ready()
    expected = given or ("None" if has_accelerator() else "1")
    assert f"TORCHDYNAMO_DISABLE {expected}\n" in (tmp_path / "vllm.log").read_text()


def test_one_that_dies_is_started_again_and_leaves_no_process(child: VllmChild, tmp_path: Path) -> None:
    child.start()
    child.wait_ready()
    first, engine = pids(tmp_path / "vllm.log")
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not child.is_ready)
    child.wait_ready()
    assert pids(tmp_path / "vllm.log")[0] != first
    wait_until(lambda: is_gone(engine))


def test_one_that_does_not_start_is_told_with_the_end_of_its_log_and_tried_again(
    child: VllmChild, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = tmp_path / "fails"
    fails.touch()
    monkeypatch.setenv("FAKE_VLLM_FAILS", str(fails))
    child.start()
    with pytest.raises(EngineError, match="does not start: it ended with 1: CUDA out of memory"):
        child.wait_ready()
    wait_until(lambda: child.is_ready)


def test_it_ends_with_a_service_that_is_killed(tiny_llama: Path, program: Path, tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    command = [sys.executable, "-c", _HOLDER, str(tiny_llama), str(log), str(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        holder.kill()
    wait_until(lambda: all(map(is_gone, pids(log))))


def test_a_program_that_is_not_there_is_refused_before_anything_starts(
    tiny_llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="no such program; install vLLM"):
        VllmChild(resolve(str(tiny_llama)), tmp_path / "vllm.log", command=["no-such-vllm"])


def test_a_running_server_that_does_not_answer_is_told_by_its_address() -> None:
    with pytest.raises(EngineError, match=r"http://127\.0\.0\.1:9/health"):
        RunningVllm("http://127.0.0.1:9/v1").wait_ready()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--vllm-command", "no-such-vllm"], "no-such-vllm: no such program"),
        (["--base", "a=a", "--base", "b=b"], "a vLLM server has one base model"),
        (["--vllm-url", "localhost:8000"], "--vllm-url"),
        (["--vllm-command", ""], "--vllm-command"),
    ],
)
def test_the_command_tells_what_is_wrong_before_it_serves(
    options: list[str], told: str, tmp_path: Path
) -> None:
    arguments = ["serve", "--folder", str(tmp_path), "--backend", "vllm", *options]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 1
    assert told in " ".join(result.stderr.split())
