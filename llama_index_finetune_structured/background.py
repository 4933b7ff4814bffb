"""One event loop in a background thread that runs asynchronous functions for synchronous callers.

Async LLM clients keep connections that belong to the loop they were opened on: a new loop for every call
(``asyncio.run``) breaks the second call with the same LLM. A shared loop also works where the caller's thread
already runs a loop (notebooks), and Ctrl-C interrupts the waiting thread even while a local model computes.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from typing import Any, ParamSpec, TypeVar

from .errors import ConfigurationError
from .forks import reset_after_fork

__all__ = ["POLL_S", "aresult_of", "blocking", "call_at", "result_of", "run_in_background"]

P = ParamSpec("P")
T = TypeVar("T")
POLL_S = 0.2
"""Seconds between two looks; chosen: a person sees no delay after Ctrl-C, and it costs nothing measurable."""
STOP_WITHIN_S = 5.0  # chosen: a cancelled request ends at once, a local model within a few tokens


class _Loop:
    """An event loop and the daemon thread that runs it."""

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


class _SharedLoop:
    """The process's loop. A forked child, in which its thread does not exist, starts with none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: _Loop | None = None
        self._of_parents: list[_Loop] = []
        reset_after_fork(self)

    def get(self) -> _Loop:
        with self._lock:
            if self._loop is None or not self._loop.thread.is_alive():
                self._loop = _Loop()
            return self._loop

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        if self._loop is not None:
            # Stopping or closing it would reach the parent: both share the loop's sockets.
            atexit.unregister(self._loop.stop)
            self._of_parents.append(self._loop)
        self._loop = None


_shared = _SharedLoop()


def blocking(work: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """``work`` as a synchronous function, named without the leading ``a``.

    It also works inside a running loop.

    Args:
        work: An asynchronous function; its signature and docstring are kept.

    Raises:
        ConfigurationError: By the returned function, when called inside asynchronous work of this package.
    """

    @functools.wraps(work)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return run_in_background(work(*args, **kwargs))

    call.__name__ = work.__name__.removeprefix("a")
    call.__qualname__ = work.__qualname__.removesuffix(work.__name__) + call.__name__
    return call


def run_in_background(job: Coroutine[Any, Any, T]) -> T:
    """Run ``job`` on the background loop, with the caller's context variables, and return its result.

    KeyboardInterrupt in the waiting thread cancels ``job``, waits up to 5 s for it to end, and is raised again.

    Args:
        job: A coroutine that has not started; its own errors are raised here.

    Raises:
        ConfigurationError: When called on the background loop itself, where waiting would deadlock.
    """
    background = _shared.get()
    if threading.current_thread() is background.thread:
        job.close()
        raise ConfigurationError(
            "a synchronous function was called inside asynchronous work of this package, which would deadlock: "
            "await its asynchronous form (acompare, aanswer_questions, agenerate)"
        )
    outcome: list[T] = []
    failure: list[BaseException] = []
    ended = threading.Event()

    async def watched() -> None:
        # Catch everything: a KeyboardInterrupt that leaves a task would stop the loop itself.
        try:
            outcome.append(await job)
        except BaseException as error:
            failure.append(error)
        finally:
            ended.set()

    future = asyncio.run_coroutine_threadsafe(watched(), background.loop)
    try:
        while not ended.wait(POLL_S):  # see result_of
            pass
    except BaseException:
        future.cancel()
        ended.wait(STOP_WITHIN_S)
        raise
    if failure:
        raise failure[0]
    return outcome[0]


def call_at(
    moment: float, step: weakref.ReferenceType[Callable[[T], None]], item: weakref.ReferenceType[T]
) -> None:
    """Call ``step`` with ``item`` on the background loop at a moment by ``time.monotonic()``, where both still exist.

    Args:
        moment: When; a moment that is over means at once.
        step: A quick function, which must not wait; as a weak reference.
        item: Its argument, as a weak reference.
    """
    loop = _shared.get().loop

    def run() -> None:
        call, argument = step(), item()
        if call is not None and argument is not None:
            call(argument)

    def schedule() -> None:
        loop.call_later(max(0.0, moment - time.monotonic()), run)

    loop.call_soon_threadsafe(schedule)


def result_of(future: Future[T]) -> T:
    """Wait for a future of another thread and return its result, or raise its error; Ctrl-C is noticed within 0.2 s.

    ``future.result()`` would wait without end for a lock. An interrupt that the system delivers to another thread
    does not wake the main thread from that wait, on some systems no interrupt does.
    """
    while not future.done():
        wait([future], timeout=POLL_S)
    return future.result()


async def aresult_of(future: Future[T]) -> T:
    """``result_of`` for async callers. An end whose callback failed in the other thread is noticed within 0.2 s."""
    wrapped = asyncio.wrap_future(future)
    while not (await asyncio.wait({wrapped}, timeout=POLL_S))[0]:
        if future.done():
            return future.result()
    return wrapped.result()
