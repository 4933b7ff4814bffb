"""The service on loopback for tests: in this process, or as the command."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import uvicorn

from llama_index_finetune_structured import LoraSettings
from llama_index_finetune_structured.service.app import create_app
from llama_index_finetune_structured.service.settings import ServiceSettings
from tests.service.openai_replies import require_described

TRAINING = LoraSettings(rank=2, batch_size=2)
WAIT_S = 240  # a worker imports torch, on a machine with others at work


def rows(count: int = 12) -> bytes:
    """A training file in OpenAI's format."""

    def row(number: int) -> str:
        answer = {"role": "assistant", "content": json.dumps({"name": f"x{number}"})}
        return json.dumps({"messages": [{"role": "user", "content": f"Film {number}"}, answer]})

    return "".join(f"{row(number)}\n" for number in range(count)).encode()


def pairs(count: int) -> bytes:
    """A file of preferences in OpenAI's format."""

    def row(number: int) -> str:
        better, worse = ([{"role": "assistant", "content": f"{text}{number}"}] for text in ("x", "no "))
        asked = {"messages": [{"role": "user", "content": f"Film {number}"}]}
        return json.dumps({"input": asked, "preferred_output": better, "non_preferred_output": worse})

    return "".join(f"{row(number)}\n" for number in range(count)).encode()


def validated(response: httpx.Response) -> None:
    """Check each reply that is JSON against OpenAI's description."""
    if response.headers.get("content-type", "").startswith("application/json"):
        response.read()
        require_described(
            response.request.method, response.request.url.path, response.status_code, response.json()
        )


def sdk(base: str, key: str = "none") -> openai.OpenAI:
    """The SDK as it is; every reply that it gets is checked."""
    http = httpx.Client(event_hooks={"response": [validated]}, timeout=60)
    return openai.OpenAI(base_url=f"{base}/v1", api_key=key, http_client=http, max_retries=0)


@contextmanager
def serving(settings: ServiceSettings) -> Iterator[str]:
    """Serve in a thread of this process; gives the address."""
    app = create_app(settings)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive())
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


class ServerProcess:
    """The ``serve`` command in a process of its own. ``log``: the file of its and its workers' standard error."""

    def __init__(self, folder: Path, base: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.base = f"http://127.0.0.1:{port}"
        command = f"serve --folder {folder} --port {port} --base tiny={base}"
        self.log = folder.with_suffix(".log")
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "llama_index_finetune_structured.cli", *command.split()],
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        wait_for(self._answers)

    def _answers(self) -> bool:
        assert self._process.poll() is None, "the server ended"
        try:
            return httpx.get(f"{self.base}/healthz").status_code == 200
        except httpx.TransportError:
            return False

    @property
    def memory(self) -> int:
        """Bytes of its resident memory."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
        assert found
        return int(found[1]) << 10

    @property
    def descriptors(self) -> int:
        """How many files and connections it has open."""
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))

    def kill(self) -> None:
        """SIGKILL: nothing of the server runs afterwards."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """SIGINT, as Ctrl-C; returns the exit status."""
        self._process.send_signal(2)
        return self._process.wait(WAIT_S)


def worker_pids(folder: Path) -> list[int]:
    """The worker processes of a service's folder, by the process ids in their lock files."""
    found = []
    for lock in folder.glob("worker-*.lock"):
        pid = lock.read_text().strip()
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        if "service.worker" in command:
            found.append(int(pid))
    return found


def wait_for(condition: Callable[[], Any], seconds: float = WAIT_S) -> Any:
    """The condition's value, once it is true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)
    return value


def job_after(client: openai.OpenAI, job_id: str, *statuses: str) -> Any:
    """The job, once it has one of the statuses."""

    def reached() -> Any:
        job = client.fine_tuning.jobs.retrieve(job_id)
        assert job.status in statuses or job.status not in ("failed", "cancelled"), job.error
        return job if job.status in statuses else None

    return wait_for(reached)


def steps_of(client: openai.OpenAI, job_id: str) -> list[int]:
    """The numbers of the steps that a job has events of, oldest first."""
    found = list(client.fine_tuning.jobs.list_events(job_id, limit=1000))
    return [event.data["step"] for event in reversed(found) if event.type == "metrics"]  # type: ignore[index]


def stored(folder: Path) -> list[str]:
    """The names of all files in the folder of contents."""
    return sorted(path.name for path in (folder / "blobs").rglob("*") if path.is_file())


def figures(text: str, name: str) -> dict[str, float]:
    """The figures of a name in Prometheus' text, by their labels."""
    return {
        labels: float(value)
        for labels, value in re.findall(rf"^{name}(\{{.*\}})? (\S+)$", text, re.MULTILINE)
    }
