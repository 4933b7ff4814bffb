"""LoRA training: this package against TRL's SFTTrainer on retrieval-augmented rows, in alternating steps.

    python benchmarks/train.py [--quick] [--json FILE] [--base-model NAME]

Two datasets from the documentation of networkx, in LlamaIndex's own question-answering prompt: shared_schema (one
question a document; rows share system prompt and schema) and rag (8 questions a chunk of two documents). Model, rows,
batches, LoRA weights, optimizer and schedule are the same. TRL runs with its defaults (bf16 autocast, gradient
checkpointing) and tuned (no checkpointing, the precision that suits the hardware). Each of the two is paired with this
package's trainer: two processes step in turns, and wait without spinning. A ratio is TRL's median seconds a step
divided by ours. A TRL run whose first step takes more than 3 minutes (--quick: 75 seconds) is stopped; the ratio is
then a lower bound, from first steps alone, which are slower than later ones.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from llama_index_finetune_structured.local.model.base_models import DEFAULT_BASE_MODEL

SYSTEMS = ("ours", "tuned", "default")
PHRASES = (
    "How do I call {}?",
    "What are the parameters of {}?",
    "Which types does {} take?",
    "What does {} return?",
    "Which exceptions does {} raise?",
    "Describe the signature of {}.",
    "What must I pass to {}?",
    "Show me how {} is used.",
)
BATCH = {"shared_schema": 4, "rag": 8}
LONGEST = 600  # characters of a document: keeps twelve steps of TRL's defaults short enough on two cores
RATE = 1e-3  # learning rate


def examples(kind: str, count: int) -> list[Any]:
    """``count`` examples: questions about functions, in the prompt of a LlamaIndex query engine."""
    from llama_index.core.prompts.chat_prompts import CHAT_TEXT_QA_PROMPT

    from llama_index_finetune_structured import Example
    from llama_index_finetune_structured.demo.corpus import ApiCard, answerable, functions, parse_card
    from llama_index_finetune_structured.example import Message

    short = (f for f in functions() if len(f.reference) <= LONGEST)
    cards = [(f, parse_card(f.name, f.docstring)) for f in short]
    cards = [(f, card) for f, card in cards if answerable(card)]
    schema = ApiCard.model_json_schema()
    rows = []
    for n, (function, card) in enumerate(cards):
        near = [f.reference for f, _ in cards[n : n + 2]] if kind == "rag" else [function.reference]
        for phrase in PHRASES if kind == "rag" else PHRASES[:1]:
            messages = CHAT_TEXT_QA_PROMPT.format_messages(
                context_str="\n\n".join(near), query_str=phrase.format(function.short_name)
            )
            rows.append(
                Example(
                    messages=tuple(Message(role=m.role.value, content=m.content) for m in messages),
                    answer=Message(role="assistant", content=card.model_dump_json()),
                    answer_schema=schema,
                )
            )
        if len(rows) >= count:
            return rows[:count]
    return rows


def ordered_batches(kind: str, steps: int, base_model: str) -> list[list[Any]]:
    """The batches that every system trains on, in order."""
    from llama_index_finetune_structured.local.model.base_models import load_tokenizer, resolve
    from llama_index_finetune_structured.local.model.prompts import token_row
    from llama_index_finetune_structured.local.model.stop_token import stop_token_id
    from llama_index_finetune_structured.local.train.batches import batches

    tokenizer = load_tokenizer(resolve(base_model))
    stop = stop_token_id(tokenizer)
    rows = [token_row(tokenizer, example, stop_id=stop) for example in examples(kind, steps * BATCH[kind])]
    return batches(rows, BATCH[kind], seed="0:0")


def lora_model(base_model: str, dtype: Any) -> Any:
    """The base with untrained LoRA weights, the same for every system."""
    import torch

    from llama_index_finetune_structured.local.model.adapter import add_lora
    from llama_index_finetune_structured.local.model.base_models import load_model, resolve

    torch.manual_seed(0)
    return add_lora(load_model(resolve(base_model), dtype=dtype), rank=16, alpha=32)


def wait_for_turn() -> None:
    """Block until the parent process asks for the next step; exit when it closes the pipe."""
    if not sys.stdin.readline():
        sys.exit(0)


def report(**figures: Any) -> None:
    """Print figures and the peak memory as one JSON line, for the parent process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**figures, "peak_mb": round(peak)}), flush=True)


def run_ours(kind: str, steps: int, base_model: str) -> None:
    """Train with this package's trainer, a step on each request; runs in its own process."""
    from llama_index_finetune_structured.local.model.devices import precision
    from llama_index_finetune_structured.local.train.packing import pack
    from llama_index_finetune_structured.local.train.settings import LoraSettings
    from llama_index_finetune_structured.local.train.trainer import Trainer

    ordered = ordered_batches(kind, steps, base_model)
    rows = [row for batch in ordered for row in batch]
    settings = LoraSettings(batch_size=BATCH[kind], epochs=1, learning_rate=RATE, checkpoint_steps=10**6)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            lora_model(base_model, precision()), rows, settings, Path(folder), fingerprint="benchmark"
        )
        if not trainer.loss.packed:
            sys.exit("packing fell back to plain batches: see the log above")
        packed = [pack(batch) for batch in ordered]
        report(flat=[len(p.ids) for p in packed], plain=[p.plain_tokens for p in packed])
        wait_for_turn()

        def done(entry: dict[str, float]) -> None:
            report(seconds=entry["seconds"], loss=entry["loss"])
            wait_for_turn()

        trainer.run(on_step=done)


def run_trl(kind: str, steps: int, base_model: str, *, tuned: bool) -> None:
    """Train with TRL, a step on each request; runs in its own process."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from llama_index_finetune_structured.local.model.base_models import load_tokenizer, resolve
    from llama_index_finetune_structured.local.model.devices import precision

    rows = [row for batch in ordered_batches(kind, steps, base_model) for row in batch]
    data = Dataset.from_list(
        [
            {
                "input_ids": [*row.prompt, *row.answer],
                "completion_mask": [0] * len(row.prompt) + [1] * len(row.answer),
            }
            for row in rows
        ]
    )

    class Turns(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            wait_for_turn()
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds = time.perf_counter() - self.started

        def on_log(self, _args: Any, _state: Any, _control: Any, logs: Any = None, **__: Any) -> None:
            if logs and "loss" in logs:
                report(seconds=self.seconds, loss=float(logs["loss"]))

    low = precision() == torch.bfloat16
    total = len(rows) // BATCH[kind]
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=not torch.cuda.is_available(),
        per_device_train_batch_size=BATCH[kind],
        num_train_epochs=1,
        learning_rate=RATE,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(0.05 * total)),
        max_length=None,
        completion_only_loss=True,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **({"bf16": low, "gradient_checkpointing": False} if tuned else {}),
    )
    tokenizer = load_tokenizer(resolve(base_model))
    model = lora_model(base_model, torch.bfloat16 if tuned and low else torch.float32)
    model.config.use_cache = False
    trainer = SFTTrainer(
        model=model, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[Turns()]
    )
    report(flat=[], plain=[])
    trainer.train()


class Limits(NamedTuple):
    """Warm-up and timed steps of each system; the longest first step, and the total after which it stops stepping."""

    warm: int
    timed: int
    first_s: float
    budget_s: float


FULL, QUICK = Limits(2, 12, 180.0, 1320.0), Limits(1, 2, 75.0, 100.0)


class Worker:
    """A system in its own process, which takes a step on request."""

    def __init__(self, system: str, kind: str, steps: int, base_model: str) -> None:
        command = [sys.executable, __file__, "--worker", system, "--kind", kind, "--steps", str(steps)]
        self.process = subprocess.Popen(
            [*command, "--base-model", base_model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"},
        )
        self.ready = self._read()
        self.steps: list[dict[str, float]] = []
        self.first_s, self.spent_s, self.stopped = 0.0, 0.0, False

    def step(self, limits: Limits) -> None:
        """Take one step, unless the time budget is used up; kill the process if its first step takes too long."""
        if self.stopped or self.spent_s >= limits.budget_s:
            return
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        started = time.perf_counter()
        timer = threading.Timer(limits.first_s, self._stop)
        if not self.steps:
            timer.start()
        entry = self._read()
        timer.cancel()
        self.spent_s += time.perf_counter() - started
        self.first_s = self.first_s or self.spent_s
        if entry:
            self.steps.append(entry)

    def _stop(self) -> None:
        self.stopped = True
        self.process.kill()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith('{"'):  # not the trainer's own log lines
                entry: dict[str, Any] = json.loads(line)
                return entry
        if self.stopped:
            return {}
        code = self.process.wait()
        sys.exit(
            f"{self.process.args}: " + ("killed: too little memory?" if code == -9 else f"ended with {code}")
        )

    def seconds(self, warm: int) -> list[float]:
        """Seconds of the steps after warm-up, else of the last step; of a stopped system, those until the stop."""
        return [step["seconds"] for step in self.steps[warm:] or self.steps[-1:]] or [self.first_s]

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def measure(kind: str, peer: str, limits: Limits, base_model: str) -> dict[str, Any]:
    """Step ours and the peer in turns; soon after the peer is stopped, ours ends too."""
    steps = limits.warm + limits.timed
    workers = {name: Worker(name, kind, steps, base_model) for name in ("ours", peer)}
    try:
        for number in range(steps):
            if workers[peer].stopped and number > limits.warm + 1:
                break
            for worker in workers.values():
                worker.step(limits)
        return _figures(workers, peer, limits.warm)
    finally:
        for worker in workers.values():
            worker.close()


def _figures(workers: dict[str, Worker], peer: str, warm: int) -> dict[str, Any]:
    ready = workers["ours"].ready
    median = {name: statistics.median(worker.seconds(warm)) for name, worker in workers.items()}
    both = zip(workers["ours"].steps, workers[peer].steps, strict=False)
    is_warm = len(workers[peer].steps) > warm
    first = workers[peer].first_s / workers["ours"].first_s
    return {
        "ratio": round(median[peer] / median["ours"] if is_warm else first, 2),
        "ratio_is_lower_bound": workers[peer].stopped,
        "ratio_is_of_first_steps": not is_warm,
        "seconds_a_step": {name: round(value, 3) for name, value in median.items()},
        "timed_steps": {name: max(0, len(worker.steps) - warm) for name, worker in workers.items()},
        "peak_mb": {name: worker.steps[-1]["peak_mb"] for name, worker in workers.items() if worker.steps},
        "tokens": {"plain": sum(ready["plain"]), "packed": sum(ready["flat"])},
        "largest_loss_difference": max((abs(a["loss"] - b["loss"]) for a, b in both), default=None),
        "losses": {name: [step["loss"] for step in worker.steps] for name, worker in workers.items()},
        "ours_tokens_a_step": round(statistics.mean(ready["flat"])),
    }


def show(kind: str, peer: str, figures: dict[str, Any]) -> None:
    """Print a pair's figures."""
    tokens = figures["tokens"]
    print(f"\n{kind}, TRL {peer}: {tokens['plain']} tokens, packed {tokens['packed']}")
    for name, seconds in figures["seconds_a_step"].items():
        if name in figures["peak_mb"]:
            detail = f"peak {figures['peak_mb'][name]:6} MB   {figures['timed_steps'][name]} timed steps"
            print(f"  {name:8} {seconds:8.2f} s a step   {detail}")
        else:
            print(f"  {name:8} more than {seconds:.0f} s a step: stopped within its first")
    of = ", first steps" if figures["ratio_is_of_first_steps"] else ""
    least = "at least " if figures["ratio_is_lower_bound"] else ""
    print(f"  TRL / ours{of}: {least}{figures['ratio']}")
    if figures["largest_loss_difference"] is not None:
        print(f"  loss differs from TRL's by at most {figures['largest_loss_difference']:.1e}")
    share, rate = figures["share_of_matrix_multiply_ceiling"], figures["ceiling_tflops"]
    print(f"  ours reaches {share:.0%} of {rate:.3f} TFLOP/s", flush=True)


def ceiling(base_model: str, tokens: int) -> tuple[float, float]:
    """TFLOP/s of the model's largest matrix multiplication, and the least TFLOP that a packed step needs."""
    import torch

    from llama_index_finetune_structured.local.model.base_models import load_model, resolve
    from llama_index_finetune_structured.local.model.devices import precision

    model = load_model(resolve(base_model), dtype=precision())
    layers = [
        m.weight for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "head" not in n
    ]
    weight = max(layers, key=lambda w: w.numel())
    inputs = torch.randn(tokens, weight.shape[1], dtype=weight.dtype)
    times = []
    for _ in range(20):
        started = time.perf_counter()
        inputs @ weight.T
        times.append(time.perf_counter() - started)
    rate = 2 * tokens * weight.numel() / statistics.median(times[2:]) / 1e12
    return rate, 4 * tokens * sum(w.numel() for w in layers) / 1e12


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="2 timed steps after 1, instead of 12 after 2")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    parser.add_argument("--base-model", default=DEFAULT_BASE_MODEL)
    parser.add_argument(
        "--against",
        choices=SYSTEMS[1:],
        nargs="+",
        default=SYSTEMS[1:],
        help="TRL tuned, with its defaults, or both; the default bf16 is very slow on CPUs without bf16 units",
    )
    parser.add_argument(
        "--data", choices=tuple(BATCH), nargs="+", default=tuple(BATCH), help="one dataset, or both"
    )
    parser.add_argument("--worker", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--kind", choices=tuple(BATCH), help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker == "ours":
        return run_ours(options.kind, options.steps, options.base_model)
    if options.worker:
        return run_trl(options.kind, options.steps, options.base_model, tuned=options.worker == "tuned")
    limits = QUICK if options.quick else FULL
    results: dict[str, dict[str, Any]] = {kind: {} for kind in options.data}
    for kind, peer in itertools.product(options.data, options.against):
        figures = measure(kind, peer, limits, options.base_model)
        rate, needed = ceiling(options.base_model, figures["ours_tokens_a_step"])
        share = needed / figures["seconds_a_step"]["ours"] / rate
        figures |= {"share_of_matrix_multiply_ceiling": round(share, 2), "ceiling_tflops": round(rate, 3)}
        results[kind][peer] = figures
        show(kind, peer, figures)
    if options.json:
        about = {"python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count()}
        ratios = {
            kind: {peer: pair["ratio"] for peer, pair in pairs.items()} for kind, pairs in results.items()
        }
        options.json.write_text(
            json.dumps({"benchmark": "train", **about, "ratios": ratios, "data": results}, indent=2)
        )
    return None


if __name__ == "__main__":
    main()
