"""OpenMP threads that were left idle end before another thread generates: libgomp would slow that one down."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from llama_index_finetune_structured import FinetuneDataset, LoraFinetuneEngine, LoraLLM
from llama_index_finetune_structured.local.model.devices import release_idle_threads

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="libgomp is PyTorch's on Linux")


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    had = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(had)


def _threads() -> set[str]:
    return set(os.listdir("/proc/self/task"))


def _left_idle() -> set[str]:
    """Compute something; the threads that the calling thread has kept for it."""
    release_idle_threads()
    before = _threads()
    numbers = torch.ones(600, 600)
    assert float((numbers @ numbers)[0, 0]) == 600
    idle = _threads() - before
    assert idle
    return idle


def _have_ended(threads: set[str]) -> bool:
    late = time.monotonic() + 10
    while threads & _threads() and time.monotonic() < late:
        time.sleep(0.01)
    return not threads & _threads()


def test_those_of_the_caller_end_and_it_computes_on(tiny_llama: Path) -> None:
    llm = LoraLLM(base_model=str(tiny_llama), max_new_tokens=4)
    idle = _left_idle()
    llm.complete("A song?")
    assert _have_ended(idle)
    _left_idle()


def test_those_of_the_event_loop_and_of_the_thread_that_prepares_a_call_end(tiny_llama: Path) -> None:
    llm = LoraLLM(base_model=str(tiny_llama), max_new_tokens=4)

    async def ask() -> set[str]:
        preparing = ThreadPoolExecutor(1)
        asyncio.get_running_loop().set_default_executor(preparing)
        idle = await asyncio.to_thread(_left_idle) | _left_idle()
        await llm.acomplete("A song?")
        assert _have_ended(idle)  # while both threads live
        return idle

    assert len(asyncio.run(ask())) == 2


def test_those_of_training_end_with_it(tiny_llama: Path, tmp_path: Path) -> None:
    data = FinetuneDataset.from_pairs([("A song?", "Echoes")] * 2)
    engine = LoraFinetuneEngine(data, base_model=str(tiny_llama), output_dir=tmp_path / "run")
    idle = _left_idle()
    engine.finetune()
    assert _have_ended(idle)
