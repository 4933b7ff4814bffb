"""The worker processes of a server: started with it, started again when they die, ended with it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import suppress

from ..printable import package_logger
from .settings import ServiceSettings

__all__ = ["WorkerProcesses"]

_log = package_logger(__name__)
_PAUSE_S = 1.0  # between a worker's death and the next start
_END_S = 60.0  # chosen: a step takes seconds; one killed in a step loses nothing that was saved
_MODULE = f"{__package__}.worker"


class WorkerProcesses:
    """One worker a device of the settings."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._devices: dict[str, str | None] = dict(enumerate_devices(settings.devices))
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="workers", daemon=True)

    def start(self) -> None:
        """Start them."""
        for name in self._devices:
            self._running[name] = self._start(name)
        self._thread.start()

    @property
    def pids(self) -> list[int]:
        """The process ids of those that run."""
        return [process.pid for process in self._running.values() if process.poll() is None]

    @property
    def are_alive(self) -> bool:
        """Whether each device has its worker."""
        return len(self.pids) == len(self._devices)

    def end(self) -> None:
        """End them after the step that they are at; the next start goes on there."""
        self._ending.set()
        self._thread.join()
        for process in self._running.values():
            with suppress(OSError):
                assert process.stdin is not None
                process.stdin.close()
        deadline = time.monotonic() + _END_S
        for name, process in self._running.items():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _log.warning("worker %s did not end within %g s and is killed", name, _END_S)
                process.kill()
                process.wait()

    def _start(self, name: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "TQDM_DISABLE": "1"}
        device = self._devices[name]
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device
        process = subprocess.Popen(
            [sys.executable, "-m", _MODULE, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=environment,
            text=True,
            start_new_session=True,  # Ctrl-C in the terminal is for the server
        )
        assert process.stdin is not None
        with suppress(OSError):  # it has died already
            process.stdin.write(self._settings.model_dump_json() + "\n")
            process.stdin.flush()
        return process

    def _watch(self) -> None:
        while not self._ending.wait(_PAUSE_S):
            for name, process in self._running.items():
                if process.poll() is not None:
                    _log.warning("worker %s ended with %s and is started again", name, process.returncode)
                    if process.stdin is not None:
                        process.stdin.close()
                    self._running[name] = self._start(name)


def enumerate_devices(devices: tuple[str, ...]) -> list[tuple[str, str | None]]:
    """The name of each worker, and its value of ``CUDA_VISIBLE_DEVICES``; None: the environment's."""
    return [(str(n), device) for n, device in enumerate(devices)] or [("0", None)]
