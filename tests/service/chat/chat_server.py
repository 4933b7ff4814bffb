"""The service on loopback, over real uvicorn, with tiny base models and trained adapters."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from openai import AsyncOpenAI, OpenAI
from safetensors.torch import load_file, save_file
from sqlalchemy import insert

from llama_index_finetune_structured import LoraLLM
from llama_index_finetune_structured.local.model.adapter import read_folder_card, write_card
from llama_index_finetune_structured.local.model.base_files import file_hash
from llama_index_finetune_structured.local.model.lora_files import WEIGHTS
from llama_index_finetune_structured.service.app import create_app
from llama_index_finetune_structured.service.call_queue import CallQueue
from llama_index_finetune_structured.service.database import jobs, models, new_id, now
from llama_index_finetune_structured.service.pool import ModelPool
from llama_index_finetune_structured.service.settings import ServiceSettings


def scaled_adapter(adapter: Path, folder: Path, factor: float) -> Path:
    """An adapter whose weights are those of another one, scaled, so that its answers differ."""
    shutil.copytree(adapter, folder)
    weights = load_file(folder / WEIGHTS)
    for name, weight in weights.items():
        weights[name] = weight * factor if "lora_B" in name else weight
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    card = read_folder_card(folder)
    write_card(folder, card, {name: file_hash(folder / name) for name in card.files})
    return folder


@dataclass
class ChatServer:
    """A running service. ``bases``: names and folders of its base models."""

    folder: Path
    bases: Mapping[str, Path]
    queue: Mapping[str, Any] = field(default_factory=dict)
    most_loaded: int = 8
    app: FastAPI = field(init=False)
    port: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        bases = {name: str(folder) for name, folder in self.bases.items()}
        self.app = create_app(ServiceSettings(folder=self.folder, bases=bases, workers=False))
        self.app.state.pool = ModelPool(most_loaded=self.most_loaded)
        self.app.state.calls = CallQueue(self.app.state.pool, **self.queue)

    @property
    def pool(self) -> ModelPool:
        pool: ModelPool = self.app.state.pool
        return pool

    @property
    def calls(self) -> CallQueue:
        calls: CallQueue = self.app.state.calls
        return calls

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def loaded_llms(self) -> list[LoraLLM]:
        return [entry.loading.result().llm for entry in self.pool._entries.values() if entry.loading.done()]

    def client(self, **options: Any) -> OpenAI:
        return OpenAI(base_url=self.url, api_key="none", **{"max_retries": 0, "timeout": 60, **options})

    def async_client(self, **options: Any) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=self.url, api_key="none", **{"max_retries": 0, "timeout": 60, **options})

    def add(self, name: str, base: str, adapter: Path) -> None:
        """Serve an adapter as if a job had trained it."""
        job = new_id("ftjob-")
        shutil.copytree(adapter, self.folder / "runs" / job / "adapter")
        with self.app.state.database.write() as connection:
            row = {"id": job, "owner": "local", "created_at": now(), "model": base, "status": "succeeded"}
            file = {"training_file": "file-1", "training_sha256": "0", "training_name": "rows.jsonl"}
            made = {"hyperparameters": {}, "seed": 0, "fine_tuned_model": name}
            connection.execute(insert(jobs).values({**row, **file, **made}))
            tuned = {"id": name, "owner": "local", "created_at": now(), "job_id": job, "base": base}
            connection.execute(insert(models).values({**tuned, "base_path": str(self.bases[base])}))

    def wait_until_idle(self, seconds: float = 20) -> None:
        """Wait until no call is answered or waits, and the models' engines have nothing to do."""
        until = time.monotonic() + seconds
        while self.calls.answered or self.calls.waiting:
            assert time.monotonic() < until, "a call is still answered"
            time.sleep(0.02)

    @contextmanager
    def running(self) -> Iterator[ChatServer]:
        config = uvicorn.Config(
            self.app, host="127.0.0.1", port=0, log_level="warning", timeout_graceful_shutdown=2
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        self.port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.should_exit = True
            thread.join(20)
