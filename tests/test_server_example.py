"""The example of a service, over uvicorn on loopback: it answers, refuses, streams, captures and ends in order."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from llama_index_finetune_structured import FinetuneDataset, LoraFinetuneEngine, LoraSettings
from tests import tiny

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
MODELS = """
from pydantic import BaseModel

class Song(BaseModel):
    title: str
    seconds: int
"""
MOST = 3


class Song(BaseModel):
    title: str
    seconds: int


class Service:
    """The service of the example, in a process of its own."""

    def __init__(self, run: Path, folder: Path) -> None:
        (folder / "models.py").write_text(MODELS)
        self.capture = folder / "capture.jsonl"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        settings = {
            "RUN": str(run),
            "BASE_MODEL": str(run.with_name("moved")),
            "SCHEMA": f"{folder / 'models.py'}:Song",
            "CAPTURE": str(self.capture),
            "MAX_QUEUE": str(MOST),
            "REQUEST_TIMEOUT": "60",
            "PYTHONPATH": os.pathsep.join([str(EXAMPLES), str(EXAMPLES.parent)]),
        }
        command = [
            "uvicorn",
            "--factory",
            "server:create_app",
            "--port",
            str(self.port),
            "--log-level",
            "warning",
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command, "--timeout-graceful-shutdown", "60"],
            env={**os.environ, "HF_HUB_OFFLINE": "1", **settings},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=120)
        while not self.is_ready():
            assert self.process.poll() is None, self.process.communicate()[1]
            time.sleep(0.05)

    def is_ready(self) -> bool:
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def ask(self, number: int, path: str = "/extract") -> httpx.Response:
        body = {"text": f"Track {number}, {20 + number} seconds", "document_id": f"d{number}"}
        return self.http.post(path, json=body)

    def end(self) -> str:
        """End it as an orchestrator does; its messages."""
        self.process.send_signal(signal.SIGTERM)
        errors = self.process.communicate(timeout=120)[1]
        self.http.close()
        return errors


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    base = tiny.save("llama", folder / "base")
    pairs = [(f"Track {n}, {20 + n} seconds", Song(title=f"Track {n}", seconds=20 + n)) for n in range(6)]
    data = FinetuneDataset.from_pairs(pairs, output_cls=Song)
    settings = LoraSettings(rank=2, epochs=1)
    LoraFinetuneEngine(data, base_model=base, output_dir=folder / "run", config=settings).finetune()
    base.rename(folder / "moved")  # as in a container
    return folder / "run"


@pytest.fixture(scope="module")
def service(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    made = Service(run, tmp_path_factory.mktemp("service"))
    yield made
    made.process.kill()
    made.process.communicate()


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_it_is_alive_and_ready_once_the_weights_are_loaded(service: Service) -> None:
    assert service.http.get("/healthz").json() == {"status": "ok"}
    assert service.http.get("/readyz").json() == {"ready": True}


def test_objects_come_with_their_probability_from_async_and_sync_endpoints(service: Service) -> None:
    for path in ("/extract", "/extract/sync"):
        reply = service.ask(1, path)
        assert reply.status_code == 200, reply.text
        Song.model_validate(reply.json()["object"])
        assert 0 <= reply.json()["probability"] <= 1


def test_a_stream_grows_to_the_whole_object(service: Service) -> None:
    lines = [json.loads(line) for line in service.ask(2, "/extract/stream").text.splitlines()]
    Song.model_validate(lines[-1])


def test_requests_beyond_the_limit_get_503_at_once_and_the_others_their_objects(service: Service) -> None:
    with ThreadPoolExecutor(12) as threads:
        replies = list(threads.map(service.ask, range(12)))
    codes = Counter(reply.status_code for reply in replies)
    assert codes.keys() <= {200, 503}
    assert codes[200] >= MOST
    assert codes[503] >= 1
    refused = next(reply for reply in replies if reply.status_code == 503)
    assert refused.json()["error"] == "QueueFullError"
    assert refused.headers["retry-after"] == "1"
    assert service.ask(3).status_code == 200


def test_a_wrong_request_is_an_error_of_the_client(service: Service) -> None:
    assert service.http.post("/extract", json={"text": ""}).status_code == 422
    assert service.http.post("/extract", json={"text": "x" * 20_000}).json()["error"] == "PromptTooLongError"


def test_at_the_end_answers_in_progress_are_given_and_the_capture_has_all_of_them(service: Service) -> None:
    before = len(_lines(service.capture))
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(service.ask, 4)
        time.sleep(0.05)
        errors = service.end()
        assert asked.result().status_code == 200
    rows = _lines(service.capture)
    assert len(rows) == before + 1
    assert rows[-1]["document_id"] == "d4"
    assert service.process.returncode in (0, -signal.SIGTERM)
    assert "Traceback" not in errors
    assert "not captured" not in errors
