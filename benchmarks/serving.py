"""Structured answers a minute of one adapter: LoraLLM, llama.cpp and vLLM side by side, and vLLM's parity.

    python benchmarks/serving.py [--adapter DIR] [--concurrency 1 8 32] [--questions N] [--rounds N] [--json FILE]

The demo's test questions with their retrieved documentation, by ``astructured_predict``, greedy, trust included. At
each concurrency LoraLLM has batches and llama.cpp (Q8_0) has slots of that many; vLLM chooses by itself. The systems
take turns, and each turn has questions of its own, the same for all systems, until there are no more. Ratios are to
LoraLLM. First ``parity`` holds vLLM's answers to those of LoraLLM without the rule of copied values, which servers do
not have. Without ``--adapter`` a small one is trained.

vLLM runs on the CPU, in an environment of its own that is made on first use (``vllm_environment.py``: 3.5 GB);
``--vllm`` names another program, such as that of a machine with a GPU; ``--vllm-url`` a server of the same base that
runs already and loads adapters, with its key in $VLLM_API_KEY.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import shlex
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from generate import questions
from llama_index.core.llms import LLM
from vllm_environment import vllm_program

from llama_index_finetune_structured import (
    FinetuneDataset,
    LlamaCppServer,
    LoraFinetuneEngine,
    LoraLLM,
    LoraSettings,
    export_adapter,
    parity,
    served_llm,
)
from llama_index_finetune_structured.demo.corpus import ApiCard, functions, parse_card
from llama_index_finetune_structured.demo.teacher import QA_TEMPLATE
from llama_index_finetune_structured.errors import FinetuneStructuredError
from llama_index_finetune_structured.local.model.adapter import find_adapter, read_card
from llama_index_finetune_structured.local.model.base_models import resolve
from llama_index_finetune_structured.local.model.lora_files import read_lora_config
from llama_index_finetune_structured.service.vllm.client import VllmClient
from llama_index_finetune_structured.service.vllm.server import RunningVllm, VllmChild, VllmServer

CPU_OPTIONS = ("--dtype", "float32", "--enforce-eager")
TRAINED_ROWS = 24
SLOT_TOKENS = 2048  # of llama.cpp, for each slot: the longest prompt and answer
Arguments = dict[str, str]


def rows(arguments: Sequence[Arguments]) -> FinetuneDataset:
    """Questions with their gold cards."""
    cards = {function.question: parse_card(function.name, function.docstring) for function in functions()}
    pairs = [(QA_TEMPLATE.format(**one), cards[one["query_str"]]) for one in arguments]
    return FinetuneDataset.from_pairs(pairs, output_cls=ApiCard)


def trained(folder: Path, arguments: Sequence[Arguments]) -> Path:
    """A small adapter, good enough that its answers end."""
    settings = LoraSettings(rank=8, epochs=1, upper_layers=10)
    engine = LoraFinetuneEngine(rows(arguments), output_dir=folder / "run", config=settings)
    engine.finetune()
    return engine.adapter


@contextmanager
def vllm(adapter: Path, server: VllmServer) -> Iterator[LLM]:
    """The adapter behind a vLLM server."""
    server.start()
    try:
        server.wait_ready()
        VllmClient(server).load("tuned", adapter.absolute())
        yield served_llm(
            adapter, model="tuned", api_base=f"{server.url}/v1", api_key=server.key, timeout=3600
        )
    finally:
        server.end()


def server_of(adapter: Path, options: argparse.Namespace, log: Path) -> VllmServer:
    """The vLLM server that the options ask for."""
    if options.vllm_url:
        return RunningVllm(options.vllm_url, os.environ.get("VLLM_API_KEY"))
    command = shlex.split(options.vllm) if options.vllm else [str(vllm_program()), *CPU_OPTIONS]
    base = resolve(read_card(adapter).base_model)
    return VllmChild(base, log, command=command, rank=read_lora_config(adapter).r)


@contextmanager
def systems(
    adapter: Path, gguf: Path, behind_vllm: LLM, places: int, threads: int
) -> Iterator[dict[str, LLM]]:
    """The systems with so many places for calls at a time."""
    with LlamaCppServer(gguf, slots=places, context=SLOT_TOKENS, threads=threads) as server:
        llama_cpp = served_llm(adapter, **server.connection, timeout=3600)
        local = LoraLLM.from_adapter(adapter, batch_size=places)
        yield {"LoraLLM": local, "llama.cpp Q8_0": llama_cpp, "vLLM": behind_vllm}


async def turn(llm: LLM, arguments: Sequence[Arguments], concurrency: int) -> tuple[float, int]:
    """Answers a minute, and how many of them were not valid."""
    places, failed = asyncio.Semaphore(concurrency), 0

    async def one(asked: Arguments) -> None:
        nonlocal failed
        async with places:
            try:
                await llm.astructured_predict(ApiCard, QA_TEMPLATE, **asked)
            except FinetuneStructuredError:
                failed += 1

    begun = time.perf_counter()
    await asyncio.gather(*map(one, arguments))
    return 60 * len(arguments) / (time.perf_counter() - begun), failed


def measure(
    compared: dict[str, LLM], concurrency: int, turns: Sequence[Sequence[Arguments]], warm: Arguments
) -> dict[str, tuple[list[float], int]]:
    """By system the answers a minute of each turn, and the answers that were not valid."""
    speeds: dict[str, list[float]] = {name: [] for name in compared}
    failures = dict.fromkeys(compared, 0)

    async def all_turns() -> None:  # clients keep their connections for one event loop
        for llm in compared.values():
            await turn(llm, [warm], 1)
        for number, arguments in enumerate(turns):
            for name in compared if number % 2 == 0 else reversed(compared):
                speed, failed = await turn(compared[name], arguments, concurrency)
                speeds[name].append(speed)
                failures[name] += failed
                print(f"  {concurrency} at a time, {name}: {speed:.1f} answers a minute", flush=True)

    asyncio.run(all_turns())
    return {name: (speeds[name], failures[name]) for name in compared}


def table(found: dict[int, dict[str, tuple[list[float], int]]]) -> Iterator[str]:
    """The medians as a table in Markdown."""
    yield f"| | {' | '.join(f'{concurrency} at a time' for concurrency in found)} |"
    yield "|---" * (1 + len(found)) + "|"
    for name in next(iter(found.values())):
        cells = []
        for figures in found.values():
            speed, failed = figures[name]
            median, ours = statistics.median(speed), statistics.median(figures["LoraLLM"][0])
            invalid = f", {failed} not valid" if failed else ""
            cells.append(f"{median:.0f} ({median / ours:.2f}){invalid}")
        yield f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapter", type=Path, help="adapter or run folder, such as that of a demo run")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument(
        "--questions", type=int, default=16, help="of a turn, at most; as many as calls at a time, at least"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parity-rows", type=int, default=12)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--vllm", metavar="COMMAND", help="program of another environment, with options of its 'serve'"
    )
    parser.add_argument("--vllm-url", metavar="URL", help="a server that runs already")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # of vLLM
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    known = questions(200)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if options.adapter is None:
            adapter, known = trained(folder, known[:TRAINED_ROWS]), known[TRAINED_ROWS:]
        else:
            adapter = find_adapter(options.adapter)
        gguf = export_adapter(adapter, folder / "tuned.gguf", format="gguf")
        behind_vllm = stack.enter_context(vllm(adapter, server_of(adapter, options, folder / "vllm.log")))
        ungrounded = LoraLLM.from_adapter(
            adapter, grounded=False
        )  # no server holds copied values to the prompt
        gate = parity(ungrounded, rows(known[: options.parity_rows]), {"vllm": behind_vllm})
        gate.print()
        endless, warm, found = itertools.cycle(known[1:]), known[0], {}
        for concurrency in options.concurrency:
            count = max(concurrency, min(options.questions, 4 * concurrency))
            turns = [[next(endless) for _ in range(count)] for _ in range(options.rounds)]
            with systems(adapter, gguf, behind_vllm, concurrency, options.threads) as compared:
                found[concurrency] = measure(compared, concurrency, turns, warm)
    print("\n".join(["", *table(found)]))
    if options.json:
        about: dict[str, Any] = {
            "benchmark": "serving",
            "machine": platform.processor() or platform.machine(),
        }
        form = gate.forms["vllm"]
        same = {"valid": form.valid, "identical": form.identical, "agreement": form.agreement, "n": form.n}
        figures = {name: {str(level): each[name][0] for level, each in found.items()} for name in compared}
        told = {**about, "threads": options.threads, "parity": same, "answers_per_minute": figures}
        options.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
