"""Kill workers with SIGKILL, one after the other, until their job is done: a script that prints what came of it.

Workers are forked from this process, which has imported what they need and computed nothing: a start takes no time.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft  # noqa: F401 - before the forks, as are all imports
import torch  # noqa: F401
import transformers  # noqa: F401
from sqlalchemy import func, select

from llama_index_finetune_structured import LoraFinetuneEngine, LoraSettings
from llama_index_finetune_structured.local.train import trainer  # noqa: F401
from llama_index_finetune_structured.service.blobs import Blobs
from llama_index_finetune_structured.service.database import Database, events, files, jobs, models
from llama_index_finetune_structured.service.job_requests import ENDED
from llama_index_finetune_structured.service.settings import ServiceSettings
from llama_index_finetune_structured.service.worker import Worker

JOB = "ftjob-000000000000000000000001"


def add_job(settings: ServiceSettings, content: Path, epochs: int) -> None:
    """Queue a job for a file."""
    database = Database(settings.database_path)
    blobs = Blobs(settings.blobs_folder, database)
    sha256 = content.name
    blobs.path(sha256).parent.mkdir(parents=True)
    blobs.path(sha256).write_bytes(content.read_bytes())
    row = {
        "id": JOB, "owner": "o", "created_at": 1, "model": "tiny", "status": "queued", "training_file": "f",
        "training_sha256": sha256, "training_name": "rows.jsonl", "seed": 3,
        "hyperparameters": {"n_epochs": epochs, "batch_size": 2, "learning_rate_multiplier": "auto"},
    }  # fmt: skip
    with database.write() as connection:
        connection.execute(jobs.insert().values(row))
    database.close()


def forked(work: Callable[[], object]) -> int:
    """The id of a child that does the work."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def found(settings: ServiceSettings) -> dict[str, Any]:
    """What the database has of the job."""
    database = Database(settings.database_path)
    with database.read() as connection:
        job = connection.execute(select(jobs)).one()
        steps = connection.scalars(
            select(events.c.step).where(events.c.step.is_not(None)).order_by(events.c.number)
        )
        result = {
            "status": job.status,
            "error": job.error,
            "steps": list(steps),
            "models": connection.scalar(select(func.count()).select_from(models)),
            "results": connection.scalar(select(func.count()).select_from(files)),
            "messages": list(connection.scalars(select(events.c.message))),
        }
    database.close()
    return result


def wait_for_a_chance(settings: ServiceSettings, chance: random.Random, child: int) -> None:
    """Wait for up to three further steps, and some time; or until the child has ended."""
    before, wanted = len(found(settings)["steps"]), chance.randint(0, 3)
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if len(found(settings)["steps"]) >= before + wanted:
            break
        time.sleep(0.01)
    time.sleep(chance.uniform(0, 0.2))


def main(folder: Path, base: str, content: Path, kills: int, epochs: int) -> None:
    """Kill so many workers, then let one end the job; train the same without kills; print both."""
    settings = ServiceSettings(
        folder=folder, bases={"tiny": base}, attempts=10_000, training=LoraSettings(rank=2)
    )
    add_job(settings, content, epochs)
    chance = random.Random(kills)

    def work() -> None:
        worker = Worker(settings, "0", threading.Event())
        while found(settings)["status"] not in ENDED:
            worker.work()

    killed = 0
    while found(settings)["status"] not in ENDED:
        child = forked(work)
        if killed < kills:
            wait_for_a_chance(settings, chance, child)
            os.kill(child, signal.SIGKILL)
            killed += 1
        os.waitpid(child, 0)
    config = settings.training.model_copy(update={"epochs": epochs, "batch_size": 2, "seed": 3})
    engine = LoraFinetuneEngine(content, base_model=base, output_dir=folder / "reference", config=config)
    engine.finetune()
    weights = "adapter/adapter_model.safetensors"
    same = (folder / "runs" / JOB / weights).read_bytes() == (folder / "reference" / weights).read_bytes()
    print(json.dumps({**found(settings), "killed": killed, "same weights": same}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
