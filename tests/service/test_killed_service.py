"""Workers and servers killed at any point: no job is lost, none is done twice, and the weights are the same."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from llama_index_finetune_structured import LoraFinetuneEngine, LoraSettings
from llama_index_finetune_structured.service.settings import ServiceSettings
from tests.service.serving import (
    ServerProcess,
    job_after,
    rows,
    sdk,
    serving,
    steps_of,
    wait_for,
    worker_pids,
)

WEIGHTS = "adapter/adapter_model.safetensors"


def _start(client: openai.OpenAI, epochs: int) -> Any:
    file = client.files.create(file=("a.jsonl", rows()), purpose="fine-tune")
    hyperparameters: Any = {"n_epochs": epochs, "batch_size": 2}
    return client.fine_tuning.jobs.create(
        model="tiny", training_file=file.id, seed=3, hyperparameters=hyperparameters
    )


def _undisturbed(base: Path, folder: Path, epochs: int, settings: LoraSettings) -> bytes:
    """The weights that the engine trains where nothing is killed."""
    folder.mkdir()
    (folder / "rows.jsonl").write_bytes(rows())
    config = settings.model_copy(update={"epochs": epochs, "batch_size": 2, "seed": 3})
    engine = LoraFinetuneEngine(
        folder / "rows.jsonl", base_model=base, output_dir=folder / "run", config=config
    )
    engine.finetune()
    return (folder / "run" / WEIGHTS).read_bytes()


def _require_done_once(client: openai.OpenAI, job: Any, steps: int) -> None:
    assert steps_of(client, job.id) == list(range(1, steps + 1))
    messages = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=1000)]
    assert messages.count(f"New fine-tuned model created: {job.fine_tuned_model}") == 1
    assert [model.id for model in client.models.list()] == ["tiny", job.fine_tuned_model]
    assert len(list(client.files.list(purpose="fine-tune-results"))) == 1


def _wait_for_a_step(client: openai.OpenAI, job_id: str) -> None:
    taken = len(steps_of(client, job_id))
    wait_for(
        lambda: len(steps_of(client, job_id)) > taken or client.fine_tuning.jobs.retrieve(job_id).finished_at
    )


def _kill_workers(folder: Path) -> None:
    for pid in worker_pids(folder):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked here")
@pytest.mark.parametrize(("kills", "epochs"), [(4, 3), pytest.param(50, 50, marks=pytest.mark.slow)])
def test_a_job_whose_workers_are_killed_is_done_once_with_the_same_weights(
    tiny_llama: Path, tmp_path: Path, kills: int, epochs: int
) -> None:
    content = tmp_path / hashlib.sha256(rows()).hexdigest()
    content.write_bytes(rows())
    found = _script("tests.service.killed_workers", tmp_path / "service", tiny_llama, content, kills, epochs)
    assert (found["status"], found["killed"], found["models"], found["results"]) == ("succeeded", kills, 1, 1)
    assert found["steps"] == list(range(1, 6 * epochs + 1))
    assert found["same weights"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="servers are forked here")
@pytest.mark.parametrize("kinds", ["SendFile,DeleteModel", "SendParts,QueueJob,DeleteFile", "Train"])
def test_killed_before_any_change_of_file_or_database_all_or_nothing_has_happened(
    tiny_llama: Path, tmp_path: Path, kinds: str
) -> None:
    """Upload, parts, queue, deletion of files and models, training: every durable step of each is a kill point."""
    done = _script("tests.service.kill_points", tmp_path, tiny_llama, kinds)
    print(done)
    assert all(points >= 5 for points in done.values())


def _script(module: str, *arguments: object) -> dict[str, Any]:
    """What a script of this folder prints last."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TQDM_DISABLE": "1"},
    )
    assert done.returncode == 0, done.stderr[-5000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_a_killed_worker_and_a_killed_server_lose_no_job_and_repeat_no_event(
    tiny_llama: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "service"
    server = ServerProcess(folder, tiny_llama)
    client = sdk(server.base)
    job = _start(client, 4)
    wait_for(lambda: len(steps_of(client, job.id)) >= 5)
    _kill_workers(folder)  # the server starts another
    _wait_for_a_step(client, job.id)
    server.kill()
    _kill_workers(folder)
    settings = ServiceSettings(folder=folder, bases={"tiny": str(tiny_llama)})
    with serving(settings) as base:
        done = job_after(sdk(base), job.id, "succeeded")
        _require_done_once(sdk(base), done, 24)
    reference = _undisturbed(tiny_llama, tmp_path / "reference", 4, LoraSettings())
    assert (folder / "runs" / job.id / WEIGHTS).read_bytes() == reference


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_fifty_kills_of_workers_and_servers_lose_nothing(tiny_llama: Path, tmp_path: Path, seed: int) -> None:
    """Ten kills a run, each at a random time of a worker's life: in its start, its check, a step, or its end."""
    folder, chance, epochs = tmp_path / "service", random.Random(seed), 30
    server = ServerProcess(folder, tiny_llama)
    job = _start(sdk(server.base), epochs)
    for kill in range(10):
        time.sleep(chance.uniform(0, 12))
        if kill % 3 == 2:  # a job that gets nowhere would be given up
            _wait_for_a_step(sdk(server.base), job.id)
        kind = chance.choice(["worker", "server", "both", "stop"])
        if kind in ("server", "both"):
            server.kill()
        if kind in ("worker", "both"):
            _kill_workers(folder)
        if kind == "stop":
            server.stop()
        if kind != "worker":
            server = ServerProcess(folder, tiny_llama)
    client = sdk(server.base)
    done = job_after(client, job.id, "succeeded")
    _require_done_once(client, done, 6 * epochs)
    found = (folder / "runs" / job.id / WEIGHTS).read_bytes()
    server.stop()
    assert found == _undisturbed(tiny_llama, tmp_path / "reference", epochs, LoraSettings())
