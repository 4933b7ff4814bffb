"""One event loop in a background thread, for the synchronous faces of asynchronous work.

All such calls share it: an LLM's connections, which belong to the loop they were opened in, stay usable from
one call to the next, also from a notebook whose own loop is running.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["run_in_background"]

T = TypeVar("T")
_lock = threading.Lock()
_running: tuple[int, asyncio.AbstractEventLoop] | None = None


def run_in_background(work: Coroutine[Any, Any, T]) -> T:
    """The coroutine's result or error. The caller's context variables go along; Ctrl-C cancels it."""
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def _loop() -> asyncio.AbstractEventLoop:
    """The loop of this process; a forked child starts its own."""
    global _running
    with _lock:
        if _running is None or _running[0] != os.getpid():
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="finetune-structured-calls", daemon=True).start()
            _running = os.getpid(), loop
        return _running[1]
