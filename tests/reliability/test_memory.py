"""Capture keeps nothing in memory of completed or abandoned calls."""

from __future__ import annotations

import gc
import subprocess
import sys
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


def grown_in_a_process_of_its_own(calls: int, path: Path) -> int:
    """The same where no thread that another test left behind allocates meanwhile."""
    command = [sys.executable, "-m", "tests.reliability.test_memory", str(calls), str(path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_two_thousand_calls_leave_nothing_in_memory(tmp_path: Path) -> None:
    assert grown_in_a_process_of_its_own(2_000, tmp_path / "calls.jsonl") < 100_000


@pytest.mark.slow
def test_a_hundred_thousand_calls_leave_nothing_in_memory(tmp_path: Path) -> None:
    grown = grown_in_a_process_of_its_own(100_000, tmp_path / "calls.jsonl")
    print(f"100,000 calls with 4 KB prompts: {grown} bytes")
    assert grown < 100_000


if __name__ == "__main__":
    print(grown_bytes(int(sys.argv[1]), Path(sys.argv[2])))
