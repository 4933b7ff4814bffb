"""Idle OpenMP threads end before another thread generates: libgomp slows down with more threads than cores."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from llama_index_finetune_structured import FinetuneDataset, LoraFinetuneEngine, LoraLLM
from llama_index_finetune_structured.local.model.devices import release_idle_threads

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="libgomp is PyTorch's on Linux")

TIMEOUT_S = 60  # passed only where the threads never end


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    had = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(had)


def _native_threads() -> set[tuple[str, str]]:
    """(id, start time) of this process's threads that Python did not start; ids alone are used again."""
    python = {str(thread.native_id) for thread in threading.enumerate()}
    threads = set()
    for task in os.listdir("/proc/self/task"):
        try:
            fields = Path(f"/proc/self/task/{task}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # ended since the listing
            continue
        if task not in python:
            threads.add((task, fields[19]))
    return threads


def _start_idle_threads() -> set[tuple[str, str]]:
    """Compute something; the OpenMP threads that this leaves idle for the calling thread."""
    release_idle_threads()
    before = _native_threads()
    numbers = torch.ones(600, 600)
    assert float((numbers @ numbers)[0, 0]) == 600
    idle = _native_threads() - before
    assert idle
    return idle


def _have_ended(threads: set[tuple[str, str]]) -> bool:
    """Wait for the threads to end: an ending thread stays listed until the kernel has removed it."""
    deadline = time.monotonic() + TIMEOUT_S
    while threads & _native_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not threads & _native_threads()


def test_idle_threads_of_the_caller_end_and_it_computes_on(tiny_llama: Path) -> None:
    llm = LoraLLM(base_model=str(tiny_llama), max_new_tokens=4)
    idle = _start_idle_threads()
    llm.complete("A song?")
    assert _have_ended(idle)
    _start_idle_threads()


def test_idle_threads_of_the_event_loop_and_of_the_thread_that_prepares_a_call_end(tiny_llama: Path) -> None:
    llm = LoraLLM(base_model=str(tiny_llama), max_new_tokens=4)

    async def ask() -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
        preparing = ThreadPoolExecutor(1)
        asyncio.get_running_loop().set_default_executor(preparing)
        of_the_preparing, of_the_loop = await asyncio.to_thread(_start_idle_threads), _start_idle_threads()
        assert of_the_preparing | of_the_loop <= _native_threads()
        await llm.acomplete("A song?")
        assert _have_ended(of_the_preparing | of_the_loop)  # while both threads live
        return of_the_preparing, of_the_loop

    of_the_preparing, of_the_loop = asyncio.run(ask())
    assert of_the_preparing.isdisjoint(of_the_loop)


def test_idle_threads_of_training_end_with_it(tiny_llama: Path, tmp_path: Path) -> None:
    data = FinetuneDataset.from_pairs([("A song?", "Echoes")] * 2)
    engine = LoraFinetuneEngine(data, base_model=str(tiny_llama), output_dir=tmp_path / "run")
    idle = _start_idle_threads()
    engine.finetune()
    assert _have_ended(idle)
