"""A process that runs a command, and ends all processes of it when its own standard input is closed.

The server that starts it holds the other end, which the system closes however that server ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

__all__ = ["run_guarded"]

_END_S = 10.0  # chosen: vLLM ends in about a second


def run_guarded(command: Sequence[str]) -> int:
    """Run a command until it ends, or standard input does. Returns its exit status."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_end_with_input, args=(process,), daemon=True).start()
    status = process.wait()
    _signal(process, signal.SIGKILL)  # processes that it left behind
    return status if status >= 0 else 128 - status


def _end_with_input(process: subprocess.Popen[bytes]) -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    _signal(process, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_END_S)
    _signal(process, signal.SIGKILL)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # none of its session is left
        os.killpg(process.pid, number)


if __name__ == "__main__":
    sys.exit(run_guarded(sys.argv[1:]))
