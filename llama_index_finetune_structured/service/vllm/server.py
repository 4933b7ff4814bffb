"""vLLM servers that answer for the service: one that is started as a child process, or one that runs already."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import httpx

from ...errors import ConfigurationError, EngineError
from ...local.export.serving import vllm_rank
from ...local.model.base_models import BaseModelFiles, context_window
from ...local.model.devices import has_accelerator
from ...printable import one_line, package_logger

__all__ = ["RunningVllm", "VllmChild", "VllmServer"]

_log = package_logger(__name__)
_GUARD = f"{__package__}.guard"
_POLL_S = 0.2
_LONGEST_PAUSE_S = 60.0  # between the end of a server that does not start and the next try
_END_S = 15.0  # longer than the guard waits
_MOST_IN_BATCH = 8  # chosen: adapters that share a batch; each takes memory of its own on the device
_TAIL_BYTES = 2000


class VllmServer(Protocol):
    """A vLLM server. ``url``: its address; ``key``: what requests to it carry, None: nothing."""

    @property
    def url(self) -> str: ...
    @property
    def key(self) -> str | None: ...
    @property
    def is_ready(self) -> bool:
        """Whether it answers now."""

    def start(self) -> None:
        """Start it, without waiting until it answers."""

    def wait_ready(self) -> None:
        """Wait until it answers. Raises EngineError where it does not."""

    def end(self) -> None:
        """End it."""


class _Health:
    """Asks a server whether it answers. A client makes a TLS context, which takes longer than the question."""

    def __init__(self) -> None:
        self._http = httpx.Client(timeout=5, trust_env=False)

    def answers(self, url: str) -> bool:
        try:
            return self._http.get(f"{url}/health").status_code == 200
        except httpx.HTTPError:
            return False


class RunningVllm:
    """A vLLM server that somebody else runs: not started or ended here."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url, self.key, self._health = url.rstrip("/").removesuffix("/v1"), key, _Health()

    @property
    def is_ready(self) -> bool:
        """Whether it answers now."""
        return self._health.answers(self.url)

    def start(self) -> None:
        """It runs already."""

    def wait_ready(self) -> None:
        """Raise EngineError where it does not answer."""
        if not self.is_ready:
            raise EngineError(
                f"no vLLM server answers at {one_line(self.url)}/health: start it, or correct --vllm-url"
            )

    def end(self) -> None:
        """It goes on."""


class VllmChild:
    """A vLLM server of one base on loopback, a child process that is started again when it ends by itself.

    It ends with this process, also where that is killed. Its key is random and known to this process alone.
    """

    def __init__(
        self,
        base: BaseModelFiles,
        log: Path,
        *,
        command: Sequence[str] = ("vllm",),
        rank: int = 16,
        most_loaded: int = 8,
        start_s: float = 1800.0,
    ) -> None:
        """``log``: file of its output. ``rank``: the highest of its adapters. ``start_s``: how long a start may take.

        ``command``: the program, and options of its ``serve`` that are added to those given here. Raises
        ConfigurationError where there is no such program.
        """
        if shutil.which(command[0]) is None:
            raise ConfigurationError(
                f"{command[0]}: no such program; install vLLM in an environment of its own and give its program, as "
                "in --vllm-command /opt/vllm/bin/vllm, or give --vllm-url of a running server"
            )
        self._base, self._path, self._command = base, log, tuple(command)
        self._rank, self._most_loaded, self._start_s = vllm_rank(rank), most_loaded, start_s
        self.key: str = secrets.token_urlsafe()
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._ending = threading.Event()
        self._ready = threading.Event()
        self._failure: str | None = None
        self._health = _Health()
        self._thread = threading.Thread(target=self._watch, name="vllm-server", daemon=True)

    @property
    def is_ready(self) -> bool:
        """Whether it answers now."""
        return self._ready.is_set()

    @property
    def pid(self) -> int | None:
        """The process that guards the server; None: there is none."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it, without waiting until it answers."""
        self._start()
        self._thread.start()

    def wait_ready(self) -> None:
        """Wait until it answers. Raises EngineError with the end of its log where its start fails."""
        until = time.monotonic() + self._start_s
        while not self._ready.wait(_POLL_S):
            if self._ending.is_set():
                raise EngineError("the vLLM server is ending with the service")
            if self._failure is not None:
                raise EngineError(f"the vLLM server does not start: {self._failure}; its log is {self._path}")
            if time.monotonic() > until:
                raise EngineError(
                    f"the vLLM server did not answer within {self._start_s:g} s; its log is {self._path}"
                )

    def end(self) -> None:
        """End it and its processes."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()
        process = self._process
        if process is None:
            return
        with suppress(OSError):
            assert process.stdin is not None
            process.stdin.close()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def arguments(self, port: int) -> list[str]:
        """The command line."""
        program, *options = self._command
        in_batch = min(_MOST_IN_BATCH, self._most_loaded)
        return [
            program, "serve", self._base.path.as_posix(), "--served-model-name", "base",
            "--host", "127.0.0.1", "--port", str(port),
            "--max-model-len", str(context_window(self._base)),
            "--enable-lora", "--max-lora-rank", str(self._rank),
            "--max-loras", str(in_batch), "--max-cpu-loras", str(self._most_loaded),
            "--generation-config", "vllm",  # the base's own would change requests that leave something out
            "--structured-outputs-config.backend", "guidance",
            *options,
        ]  # fmt: skip

    def _start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        own = {"VLLM_API_KEY": self.key, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
        private = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        uncompiled = (
            {} if has_accelerator() else {"TORCHDYNAMO_DISABLE": "1"}
        )  # the environment's own counts more
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _GUARD, *self.arguments(port)],
                stdin=subprocess.PIPE,
                stdout=descriptor,
                stderr=descriptor,
                env={**uncompiled, **os.environ, **private, **own},
                start_new_session=True,  # Ctrl-C in the terminal is for the service
            )
        finally:
            os.close(descriptor)

    def _watch(self) -> None:
        pause = 1.0
        while not self._ending.wait(_POLL_S):
            process = self._process
            assert process is not None
            if process.poll() is None:
                if not self._ready.is_set() and self._health.answers(self.url):
                    self._failure, pause = None, 1.0
                    self._ready.set()
                continue
            was_ready = self._ready.is_set()
            self._ready.clear()
            why = f"it ended with {process.returncode}: {self._tail()}"
            self._failure = None if was_ready else why
            _log.error("the vLLM server is started again in %g s, since %s", pause, why)
            if self._ending.wait(pause):
                return
            pause = min(2 * pause, _LONGEST_PAUSE_S)
            if process.stdin is not None:
                process.stdin.close()
            self._failure = None  # those that wait from now on are told of the next one
            self._start()

    def _tail(self) -> str:
        """The end of its log, in one line."""
        with open(self._path, "rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - _TAIL_BYTES))
            return one_line(log.read().decode("utf-8", "replace")) or "it wrote nothing"
