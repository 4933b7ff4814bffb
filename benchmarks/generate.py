"""Structured answers a minute: LoraLLM against transformers' generate, with and without a grammar.

    python benchmarks/generate.py [--quick] [--adapter DIR] [--json FILE]

The demo's test questions with their retrieved documentation, eight at a time, greedy, at most 256 tokens; the same
weights, number format and prompt tokens for all. ``generate`` gets left-padded batches of eight and, in its second
row, the same bounded schema through XGrammar (`make bench` installs it; skipped without it).
The systems take turns, all questions a turn. LoraLLM starts every turn with empty caches. Two further rows are LoraLLM
without the probabilities of its answers, and without holding copied values to the prompt's texts.
Without ``--adapter`` the base model answers, at length; use the adapter folder of a demo run.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from pydantic import ValidationError

from llama_index_finetune_structured import LoraLLM
from llama_index_finetune_structured.demo import run as demo
from llama_index_finetune_structured.demo.corpus import REFERENCE_KEY, ApiCard, functions
from llama_index_finetune_structured.demo.teacher import QA_TEMPLATE
from llama_index_finetune_structured.local.generate import loaded_models
from llama_index_finetune_structured.local.model.base_models import resolve
from llama_index_finetune_structured.local.schema.bounds import bounded_schema, schema_key

CONCURRENCY, ANSWER_TOKENS = 8, 256


@dataclass(frozen=True)
class Turn:
    """One system's answers to all questions."""

    texts: list[str]
    seconds: float
    forwards: int


def questions(count: int) -> list[dict[str, str]]:
    """Prompt arguments: the demo's test questions, each with the documentation that retrieval finds for it."""
    documents = functions()
    retriever = demo._retriever(documents)
    _, test = demo._questions(documents, demo.DemoSettings(test_size=count))
    arguments: list[dict[str, str]] = []
    for example in test:
        metadata = retriever.retrieve(example.query or "")[0].node.metadata
        context = f"function: {metadata['function']}\n\n{metadata[REFERENCE_KEY]}"
        arguments.append({"context_str": context, "query_str": example.query or ""})
    return arguments


@contextmanager
def counting(model: Any) -> Iterator[list[int]]:
    """Counts the forwards of a model: one item each."""
    forwards: list[int] = []
    hook = model.register_forward_pre_hook(lambda *_: forwards.append(1))
    yield forwards
    hook.remove()


def ours(load: Callable[[], LoraLLM], arguments: list[dict[str, str]]) -> Turn:
    """LoraLLM, with concurrent structured calls."""
    llm = load()
    llm._loaded  # noqa: B018  loading is not timed

    async def one(question: dict[str, str], slots: asyncio.Semaphore) -> str:
        async with slots:
            try:
                answer = await llm.astructured_predict(ApiCard, QA_TEMPLATE, **question)
            except ValueError as error:
                return str(error)
        return answer.model_dump_json()

    async def run() -> list[str]:
        slots = asyncio.Semaphore(CONCURRENCY)
        return await asyncio.gather(*(one(question, slots) for question in arguments))

    with counting(llm._loaded.engine.model) as forwards:
        started = time.perf_counter()
        texts = asyncio.run(run())
        return Turn(texts, time.perf_counter() - started, len(forwards))


def generated(
    model: Any, llm: LoraLLM, prompts: list[list[int]], processors: Callable[[], list[Any]]
) -> Turn:
    """transformers' own ``generate``, batch after batch."""
    tokenizer, stop = llm._loaded.tokenizer, llm._loaded.stop_id
    texts: list[str] = []
    with counting(model) as forwards:
        started = time.perf_counter()
        for at in range(0, len(prompts), CONCURRENCY):
            texts += generated_batch(model, prompts[at : at + CONCURRENCY], tokenizer, stop, processors())
        return Turn(texts, time.perf_counter() - started, len(forwards))


def generated_batch(
    model: Any, batch: list[list[int]], tokenizer: Any, stop: int, processors: list[Any]
) -> list[str]:
    width = max(map(len, batch))
    ids = [[stop] * (width - len(prompt)) + prompt for prompt in batch]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch]
    with torch.inference_mode():
        output = model.generate(
            torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            max_new_tokens=ANSWER_TOKENS,
            do_sample=False,
            eos_token_id=stop,
            pad_token_id=stop,
            logits_processor=transformers.LogitsProcessorList(processors),
        )
    return list(tokenizer.batch_decode(output[:, width:], skip_special_tokens=True))


def xgrammar_processors(llm: LoraLLM) -> Callable[[], list[Any]] | None:
    try:
        import xgrammar
        from xgrammar.contrib.hf import LogitsProcessor
    except ImportError:
        return None
    schema = ApiCard.model_json_schema()
    bounded = bounded_schema(schema, schema_key(schema), llm.bounds)
    vocabulary = llm._loaded.engine.model.config.vocab_size
    info = xgrammar.TokenizerInfo.from_huggingface(
        llm._loaded.tokenizer, vocab_size=vocabulary, stop_token_ids=[llm._loaded.stop_id]
    )
    compiled = xgrammar.GrammarCompiler(info).compile_json_schema(
        json.dumps(bounded), any_whitespace=False, separators=(",", ":")
    )
    return lambda: [LogitsProcessor(compiled)]


def card(text: str) -> ApiCard | None:
    try:
        return ApiCard.model_validate_json(text)
    except ValidationError:
        return None


def measure(adapter: Path | None, count: int, rounds: int) -> dict[str, Any]:
    options: dict[str, Any] = {"batch_size": CONCURRENCY, "max_new_tokens": ANSWER_TOKENS, "alternatives": 0}

    def load(**more: bool) -> LoraLLM:
        gc.collect()
        return LoraLLM.from_adapter(adapter, **options, **more) if adapter else LoraLLM(**options, **more)

    arguments, llm = questions(count), load()
    prompts = [llm.prompt_token_ids(QA_TEMPLATE.format_messages(llm=llm, **q), ApiCard) for q in arguments]
    model = loaded_models._weights(resolve(llm.base_model), adapter).eval()
    systems: dict[str, Callable[[], Turn]] = {
        "transformers generate": lambda: generated(model, llm, prompts, list),
    }
    if (processors := xgrammar_processors(llm)) is not None:
        systems["transformers + XGrammar"] = lambda: generated(model, llm, prompts, processors)
    # Every turn loads the model again: loaded models are shared between LLM objects.
    systems["LoraLLM"] = lambda: ours(lambda: fresh(load()), arguments)
    systems["LoraLLM, no confidence"] = lambda: ours(lambda: fresh(load(confidence=False)), arguments)
    systems["LoraLLM, not grounded"] = lambda: ours(lambda: fresh(load(grounded=False)), arguments)
    turns: dict[str, list[Turn]] = {name: [] for name in systems}
    for number in range(rounds):
        for name in systems if number % 2 == 0 else reversed(systems):
            turns[name].append(systems[name]())
            print(f"  {name}: {turns[name][-1].seconds:.1f} s", flush=True)
    return {name: figures(mine, turns["transformers generate"]) for name, mine in turns.items()}


def fresh(llm: LoraLLM) -> LoraLLM:
    """The LLM with a newly loaded model: empty prefix cache, no compiled grammars, no index of answers."""
    loaded_models._loaded.clear()
    return llm


def figures(turns: list[Turn], plain: list[Turn]) -> dict[str, Any]:
    """Medians over the turns; ``same_as_plain`` compares with plain ``generate`` where that is valid."""
    cards = [card(text) for turn in turns for text in turn.texts]
    others = [card(text) for turn in plain for text in turn.texts]
    seconds = statistics.median(turn.seconds for turn in turns)
    pairs = [(mine, other) for mine, other in zip(cards, others, strict=True) if other is not None]
    return {
        "answers_per_minute": round(60 * len(turns[0].texts) / seconds, 1),
        "seconds": [round(turn.seconds, 2) for turn in turns],
        "valid": sum(answer is not None for answer in cards) / len(cards),
        "same_as_plain": round(sum(a == b for a, b in pairs) / len(pairs), 3) if pairs else None,
        "forwards": round(statistics.median(turn.forwards for turn in turns)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="16 questions and 2 rounds, not 40 and 3")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="a tuned adapter's folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    options = parser.parse_args()
    count, rounds = (16, 2) if options.quick else (40, 3)
    systems = measure(options.adapter, count, rounds)
    plain = statistics.median(systems["transformers generate"]["seconds"])
    mine = statistics.median(systems["LoraLLM"]["seconds"])
    print(f"\n{count} questions, {CONCURRENCY} at a time, {rounds} rounds")
    print(f"{'system':26}{'answers/min':>12}{'valid':>8}{'as plain':>10}{'forwards':>10}")
    for name, row in systems.items():
        same = "-" if row["same_as_plain"] is None else f"{row['same_as_plain']:.0%}"
        print(f"{name:26}{row['answers_per_minute']:>12}{row['valid']:>8.0%}{same:>10}{row['forwards']:>10}")
    ratios = {
        name: round(statistics.median(row["seconds"]) / mine, 2)
        for name, row in systems.items()
        if name != "LoraLLM"
    }
    print(f"LoraLLM is {plain / mine:.2f}x plain generate (ratios of medians: {ratios})")
    if options.json:
        about = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "machine": platform.machine(),
        }
        about |= {"transformers": transformers.__version__, "adapter": str(options.adapter or "")}
        about |= {"questions": count, "concurrency": CONCURRENCY, "rounds": rounds}
        options.json.write_text(
            json.dumps({"benchmark": "generate", **about, "systems": systems, "ratios": ratios}, indent=2)
        )


if __name__ == "__main__":
    main()
