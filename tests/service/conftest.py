"""A service on loopback, shared by the tests of this folder; each has a key of its own."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from llama_index_finetune_structured.service.database import Database
from llama_index_finetune_structured.service.keys import KeyStore
from llama_index_finetune_structured.service.settings import ServiceSettings
from llama_index_finetune_structured.service.worker import Worker
from tests.service.serving import TRAINING, job_after, rows, sdk, serving


@dataclass
class Running:
    """A service with keys: its address, settings, and how to make a client with a new key."""

    base: str
    settings: ServiceSettings
    add_key: Callable[..., str]

    def client(self, **limits: Any) -> openai.OpenAI:
        """A client with a new key, which sees nothing of the others."""
        return sdk(self.base, self.add_key(**limits))


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server."""
    settings = ServiceSettings(
        folder=tmp_path_factory.mktemp("service"),
        bases={"tiny": str(tmp_path_factory.mktemp("base"))},  # which is filled for the worker
        training=TRAINING,
        workers=False,
        max_file_bytes=1 << 20,
        max_part_bytes=1 << 18,
        max_body_bytes=1 << 16,
    )
    database = Database(settings.database_path)
    store, number = KeyStore(database, settings), itertools.count()

    def add_key(**limits: Any) -> str:
        return store.add(f"key {next(number)}", **limits)

    add_key()
    with serving(settings) as base:
        yield Running(base, settings, add_key)
    database.close()


@pytest.fixture(scope="session")
def worker(service: Running, tiny_llama: Path) -> Iterator[None]:
    """A worker of that server, as a thread: a process takes seconds to start."""
    shutil.copytree(tiny_llama, service.settings.bases["tiny"], dirs_exist_ok=True)
    stop = threading.Event()
    thread = threading.Thread(target=Worker(service.settings, "0", stop).run)
    thread.start()
    yield
    stop.set()
    thread.join()


@pytest.fixture
def client(service: Running) -> openai.OpenAI:
    return service.client()


@dataclass
class Trained:
    """A job that has succeeded, and the client that made it."""

    client: openai.OpenAI
    job: Any


@pytest.fixture(scope="session")
def trained(service: Running, worker: None) -> Trained:
    """One really trained job, with held-out rows."""
    client = service.client()
    file = client.files.create(file=("räume.jsonl", rows()), purpose="fine-tune")
    held_out = client.files.create(file=("held-out.jsonl", rows(2)), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=file.id,
        validation_file=held_out.id,
        suffix="Films-1",
        seed=7,
        metadata={"run": "a b", "it's": "ü"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
    )
    return Trained(client, job_after(client, job.id, "succeeded"))
