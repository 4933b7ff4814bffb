"""Answers a minute of several adapters over one base in memory, beside one adapter merged into its base.

    python benchmarks/adapters.py [--quick] [--base NAME] [--rank N] [--json FILE]

Eight adapters of random weights, so small that the answers stay those of the base; eight calls at a time, greedy, 64
tokens each, the grammar left out. The systems take turns, all calls a turn, each with empty caches.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from llama_index_finetune_structured import LoraLLM
from llama_index_finetune_structured.llms.adapter_pool import AdapterPool
from llama_index_finetune_structured.local.model.adapter import AdapterCard, add_lora, save_adapter
from llama_index_finetune_structured.local.model.base_models import DEFAULT_BASE_MODEL, load_model, resolve
from llama_index_finetune_structured.local.model.devices import precision
from llama_index_finetune_structured.local.schema.bounds import AnswerBounds

ADAPTERS, CONCURRENCY, ANSWER_TOKENS = 8, 8, 64


def random_adapters(base: str, folder: Path, rank: int) -> list[Path]:
    """Folders of untrained adapters whose weights are random and small."""
    files = resolve(base)
    tuned = add_lora(load_model(files, dtype=precision()), rank=rank, alpha=rank)
    made = [folder / f"adapter-{number}" for number in range(ADAPTERS)]
    for path in made:
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.data.normal_(0, 1e-4)
        card = AdapterCard(
            base_model=base,
            base_sha256=files.sha256,
            bounds=AnswerBounds(),
            longest_answer_tokens=ANSWER_TOKENS,
            rows=1,
            fingerprint=path.name,
        )
        save_adapter(tuned, path, card)
    return made


def seconds(llms: list[LoraLLM], calls: int) -> float:
    """How long so many calls take, eight at a time, one LLM after the other."""

    async def one(number: int, slots: asyncio.Semaphore) -> None:
        async with slots:
            await llms[number % len(llms)].acomplete(
                f"Write about the number {number}.", max_new_tokens=ANSWER_TOKENS
            )

    async def all_calls() -> None:
        slots = asyncio.Semaphore(CONCURRENCY)
        await asyncio.gather(*(one(number, slots) for number in range(calls)))

    for llm in llms:
        _ = llm._loaded.adapter  # loading is not timed
    started = time.perf_counter()
    asyncio.run(all_calls())
    return time.perf_counter() - started


def measure(base: str, rank: int, calls: int, rounds: int) -> dict[str, float]:
    """Median answers a minute of each system."""
    with tempfile.TemporaryDirectory() as folder:
        adapters = random_adapters(base, Path(folder), rank)

        def pooled(count: int) -> list[LoraLLM]:
            pool = AdapterPool(base, batch_size=CONCURRENCY)
            return [pool.llm(path) for path in adapters[:count]]

        systems: dict[str, Callable[[], list[LoraLLM]]] = {
            "one adapter, merged": lambda: [LoraLLM.from_adapter(adapters[0], batch_size=CONCURRENCY)],
            "pool, one adapter": lambda: pooled(1),
            f"pool, {ADAPTERS} adapters mixed": lambda: pooled(ADAPTERS),
        }
        turns: dict[str, list[float]] = {name: [] for name in systems}
        for number in range(rounds):
            for name in systems if number % 2 == 0 else reversed(systems):
                turns[name].append(seconds(systems[name](), calls))
                print(f"  {name}: {turns[name][-1]:.1f} s", flush=True)
    return {name: round(60 * calls / statistics.median(times), 1) for name, times in turns.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="16 calls and 2 rounds, not 48 and 3")
    parser.add_argument("--base", default=DEFAULT_BASE_MODEL, help="base model")
    parser.add_argument("--rank", type=int, default=16, help="rank of the adapters")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    options = parser.parse_args()
    found = measure(options.base, options.rank, *((16, 2) if options.quick else (48, 3)))
    print(f"\n{'system':28}{'answers/min':>12}")
    for name, figure in found.items():
        print(f"{name:28}{figure:>12}")
    if options.json:
        about = {"benchmark": "adapters", "torch": torch.__version__, "rank": options.rank}
        options.json.write_text(json.dumps({**about, "answers_per_minute": found}, indent=2))


if __name__ == "__main__":
    main()
