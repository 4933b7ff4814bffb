"""Measure what capture adds to an LLM call, beside no handler, LlamaDebugHandler and the predecessor's handler.

    python benchmarks/capture.py [--quick] [--json FILE]

A mock LLM answers a chat with a 4 KB prompt immediately, so that only LlamaIndex and the handlers take time.
The systems alternate in short rounds within one run. The predecessor is timed where it is installed:
pip install --no-deps llama-index-finetuning==0.4.2 (the package does not import with today's LlamaIndex; the one
file of its handlers is loaded).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, LLMMetadata
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM

from llama_index_finetune_structured.capture import OpenAIFineTuningHandler, capture
from llama_index_finetune_structured.jsonl_store import JsonlStore, read_shards

ANSWER = json.dumps({"citations": [{"author": "Lin", "year": 2021, "desc": "TruthfulQA " * 5}] * 3})


class InstantLLM(CustomLLM):
    """Answers immediately."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="instant", is_chat_model=True)

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **_: Any) -> ChatResponse:
        return ChatResponse(message=ChatMessage(role="assistant", content=ANSWER))

    @llm_completion_callback()
    def complete(self, prompt: str, **_: Any) -> CompletionResponse:
        return CompletionResponse(text=ANSWER)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, **_: Any) -> Any:
        raise NotImplementedError


@contextmanager
def nothing(_: Path) -> Iterator[InstantLLM]:
    yield InstantLLM()


@contextmanager
def debug_handler(_: Path) -> Iterator[InstantLLM]:
    yield InstantLLM(callback_manager=CallbackManager([LlamaDebugHandler(print_trace_on_end=False)]))


@contextmanager
def handler(folder: Path) -> Iterator[InstantLLM]:
    yield InstantLLM(callback_manager=CallbackManager([OpenAIFineTuningHandler(folder / "handler.jsonl")]))


def scope(name: str, **options: Any) -> Callable[[Path], Any]:
    @contextmanager
    def opened(folder: Path) -> Iterator[InstantLLM]:
        with capture(folder / f"{name}.jsonl", **options):
            yield InstantLLM()

    return opened


def predecessor() -> Callable[[Path], Any] | None:
    for entry in sys.path:
        file = Path(entry) / "llama_index/finetuning/callbacks/finetuning_handler.py"
        if file.exists():
            break
    else:
        return None
    spec = importlib.util.spec_from_file_location("predecessor", file)
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    @contextmanager
    def opened(_: Path) -> Iterator[InstantLLM]:
        yield InstantLLM(callback_manager=CallbackManager([module.OpenAIFineTuningHandler()]))

    return opened


def time_calls(llm: InstantLLM, calls: int, prompt: str) -> list[float]:
    """Microseconds of each call."""
    times = []
    for number in range(calls):
        messages = [ChatMessage(role="system", content="Extract."), ChatMessage(content=f"{number} {prompt}")]
        start = time.perf_counter_ns()
        llm.chat(messages)
        times.append((time.perf_counter_ns() - start) / 1000)
    return times


def measure(systems: dict[str, Callable[[Path], Any]], rounds: int, calls: int) -> dict[str, Any]:
    """Time every system in every round; added times are relative to the same round, as machines change their speed."""
    prompt = ("The quick brown fox jumps over the lazy dog. " * 100)[:4096]
    times: dict[str, list[list[float]]] = {name: [] for name in systems}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for name, opened in systems.items():
                place = Path(folder) / str(number)
                place.mkdir(exist_ok=True)
                with ExitStack() as stack:
                    llm = stack.enter_context(opened(place))
                    time_calls(llm, 20, prompt)
                    times[name].append(time_calls(llm, calls, prompt))
    return {name: figures(values, times["no handler"]) for name, values in times.items()}


def figures(values: list[list[float]], base: list[list[float]]) -> dict[str, Any]:
    """The figures of one system: ``values`` and ``base`` are microseconds of each call, by round."""
    every = [value for of_round in values for value in of_round]
    added = [
        statistics.median(mine) - statistics.median(bare) for mine, bare in zip(values, base, strict=True)
    ]
    return {
        "median_us": round(statistics.median(every), 1),
        "p99_us": round(statistics.quantiles(every, n=100)[98], 1),
        "added_median_us": round(statistics.median(added), 1),
        "calls": len(every),
    }


def measure_threads(records: int, threads: int = 64) -> dict[str, Any]:
    """Microseconds of one ``JsonlStore.append`` of a 4 KB record while 64 threads write to one file.

    Between two records each thread waits 10 ms, like a very fast model: 6,400 records a second at most.
    """
    line = json.dumps({"text": "x" * 4096}).encode()
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        store = JsonlStore(Path(folder) / "store.jsonl")
        store.open()

        def write(count: int) -> None:
            for _ in range(count):
                time.sleep(0.01)
                start = time.perf_counter_ns()
                store.append(line)
                times.append((time.perf_counter_ns() - start) / 1000)

        workers = [threading.Thread(target=write, args=(records // threads,)) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        kept = sum(1 for _ in read_shards(store.path))
    return {
        "threads": threads,
        "appended": len(times),
        "kept": kept,
        "median_us": round(statistics.median(times), 1),
        "p99_us": round(statistics.quantiles(times, n=100)[98], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    options = parser.parse_args()
    systems: dict[str, Callable[[Path], Any]] = {
        "no handler": nothing,
        "LlamaDebugHandler": debug_handler,
        "OpenAIFineTuningHandler": handler,
        "capture()": scope("scope"),
        "capture(redact=True)": scope("redacted", redact=True),
        "capture(fsync=True)": scope("fsync", fsync=True),
    }
    old = predecessor()
    if old is not None:
        systems["predecessor 0.4.2"] = old
    table = measure(systems, rounds=10 if options.quick else 100, calls=60)
    print(f"{'system':28}{'median us':>11}{'p99 us':>11}{'added us':>11}")
    for name, row in table.items():
        print(f"{name:28}{row['median_us']:>11}{row['p99_us']:>11}{row['added_median_us']:>11}")
    threads = measure_threads(2_048 if options.quick else 10_048)
    print(f"store, 64 threads: {threads}")
    if old is None:
        print("predecessor: not found, not timed (see --help)")
    if options.json:
        about = {"python": platform.python_version(), "machine": platform.machine(), "prompt_bytes": 4096}
        options.json.write_text(
            json.dumps({"benchmark": "capture", **about, "systems": table, "store": threads}, indent=2)
        )


if __name__ == "__main__":
    main()
