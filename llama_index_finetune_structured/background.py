"""One event loop in a thread of its own, for the synchronous faces of asynchronous work.

Async LLM clients keep connections that belong to the loop they were opened on: a new loop for every call
(``asyncio.run``) breaks the second call with the same LLM. It also works under a running loop
(notebooks), and Ctrl-C reaches the waiting thread even while a local model computes.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import threading
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from .errors import ConfigurationError

__all__ = ["blocking", "run_in_background"]

P = ParamSpec("P")
T = TypeVar("T")
STOP_WITHIN_S = 5.0


class _Loop:
    """The loop and its thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="finetune-structured", daemon=True)
        self.thread.start()
        atexit.register(self.stop)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(STOP_WITHIN_S)
        if not self.thread.is_alive():
            self.loop.close()


_lock = threading.Lock()
_current: _Loop | None = None


def blocking(work: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """``work`` as a plain function, also callable inside a running loop."""

    @functools.wraps(work)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return run_in_background(work(*args, **kwargs))

    call.__name__ = work.__name__.removeprefix("a")
    call.__qualname__ = work.__qualname__.removesuffix(work.__name__) + call.__name__
    return call


def run_in_background(job: Coroutine[Any, Any, T]) -> T:
    """Wait for ``job``, which sees the caller's context variables.

    An interrupt of the waiting thread cancels it, waits up to 5 s, and passes.
    """
    found = _running()
    if threading.current_thread() is found.thread:
        job.close()
        raise ConfigurationError(
            "a synchronous call was made inside of another's asynchronous work, which it would block for ever: "
            "await its asynchronous form (acompare, aanswer_questions, agenerate)"
        )
    outcome: list[T] = []
    failure: list[BaseException] = []
    ended = threading.Event()

    async def watched() -> None:
        # nothing may escape: an interrupt raised in a task would end the loop itself
        try:
            outcome.append(await job)
        except BaseException as error:
            failure.append(error)
        finally:
            ended.set()

    future = asyncio.run_coroutine_threadsafe(watched(), found.loop)
    try:
        ended.wait()
    except BaseException:
        future.cancel()
        ended.wait(STOP_WITHIN_S)
        raise
    if failure:
        raise failure[0]
    return outcome[0]


def _running() -> _Loop:
    """The loop; a new one in a forked process, where the thread is gone."""
    global _current
    with _lock:
        if _current is None or not _current.thread.is_alive():
            _current = _Loop()
        return _current
