"""Waiting for work on another thread: results, errors, and an interrupt that another thread receives."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from concurrent.futures import Future
from threading import Timer

import pytest

from llama_index_finetune_structured.background import aresult_of, result_of

# The signal is delivered to a thread that is not the main one, as some systems do with Ctrl-C.
INTERRUPTED = """
import asyncio, signal, threading, time
from concurrent.futures import Future
from llama_index_finetune_structured.background import result_of, run_in_background

def interrupt():
    time.sleep(0.5)
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
try:
    {wait}
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("wait", ["result_of(Future())", "run_in_background(asyncio.sleep(60))"])
def test_an_interrupt_that_another_thread_receives_ends_the_wait(wait: str) -> None:
    started = time.monotonic()
    script = INTERRUPTED.format(wait=wait)
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=True
    )
    assert ended.stdout == "interrupted\n"
    assert time.monotonic() - started < 40  # the sleep would take 60 s


def test_the_result_of_a_future_is_its_value_or_its_error() -> None:
    future: Future[int] = Future()
    Timer(0.05, future.set_result, [3]).start()
    assert result_of(future) == 3
    failed: Future[int] = Future()
    failed.set_exception(KeyError("x"))
    with pytest.raises(KeyError):
        result_of(failed)


async def test_an_awaited_result_is_the_futures_value_or_error_even_where_its_callbacks_failed() -> None:
    future: Future[int] = Future()
    Timer(0.05, future.set_result, [3]).start()
    assert await aresult_of(future) == 3
    silent: Future[int] = Future()
    waiting = asyncio.ensure_future(aresult_of(silent))
    await asyncio.sleep(0.05)
    silent._done_callbacks.clear()  # type: ignore[attr-defined]
    silent.set_exception(KeyError("x"))
    with pytest.raises(KeyError):
        await asyncio.wait_for(waiting, 10)
