"""Capture keeps nothing in memory of completed or abandoned calls."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import pytest
from llama_index.core.callbacks import CallbackManager

from llama_index_finetune_structured.capture import OpenAIFineTuningHandler, capture
from llama_index_finetune_structured.capture.tracker import tracker
from tests.capture.fakes import EchoLLM

PROMPT = "The quick brown fox jumps over the lazy dog. " * 90  # 4 KB


def grown_bytes(calls: int, path: Path) -> int:
    """What ``calls`` calls, streams and abandoned streams leave in memory, in bytes."""
    handler = OpenAIFineTuningHandler()
    attached, llm = EchoLLM(callback_manager=CallbackManager([handler])), EchoLLM(reply="yes")

    def some(count: int) -> None:
        for number in range(count // 4):
            llm.complete(f"{number} {PROMPT}")
            attached.complete(f"{number} {PROMPT}")
            list(llm.stream_complete(f"{number} {PROMPT}"))
            next(iter(llm.stream_complete(f"{number} {PROMPT}")))

    with capture(path):
        some(400)
        gc.collect()
        records = len(tracker.tree)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        some(calls)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert len(tracker.tree) == records
    assert handler.summary()["captured"] == (calls + 400) // 4
    return grown


def test_two_thousand_calls_leave_nothing_in_memory(tmp_path: Path) -> None:
    # The smaller of two: what is made once, such as by a library's own thread, is no leak.
    assert min(grown_bytes(2_000, tmp_path / f"calls-{n}.jsonl") for n in range(2)) < 100_000


@pytest.mark.slow
def test_a_hundred_thousand_calls_leave_nothing_in_memory(tmp_path: Path) -> None:
    grown = grown_bytes(100_000, tmp_path / "calls.jsonl")
    print(f"100,000 calls with 4 KB prompts: {grown} bytes")
    assert grown < 100_000
