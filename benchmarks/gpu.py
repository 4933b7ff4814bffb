"""LoRA training and serving of models of 0.6B to 8B on one GPU, with random weights: nothing is downloaded.

    python benchmarks/gpu.py [--minutes 10] [--models NAME ...] [--json FILE] [--dry-run]

Training is compared with TRL's SFTTrainer, tuned: bf16, fused AdamW, Liger's kernels and batches without padding where
they are installed, no checkpointing unless memory runs out. Rows, batches, weights and schedule are the same. Three
kinds of rows: shared_schema (rows share system prompt and schema), questions (8 questions a chunk) and unshared.
Tokens a second count the rows without packing, for both; ratio is that of ours to TRL's. MFU is the share of the
device's peak that the least floating-point operations take, of packed rows for ours and of plain rows for TRL; LoRA's
own products are left out. The peak is that of the data sheet, or else a measured matrix multiplication.

Serving is compared with transformers' generate, in batches of 8, with answers of a fixed number of tokens. Random
models repeat themselves, which drafts profit from, so that ours is measured without them too.

What does not fit into the memory or fails is said, and the rest goes on; what would begin after the time is skipped.
--json adds the figures to FILE under the name of the device, after each part. --dry-run: one tiny model,
on any device.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.util
import json
import platform
import random
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from llama_index_finetune_structured.local.generate.engine import GenerationEngine
from llama_index_finetune_structured.local.generate.request import GenerationRequest
from llama_index_finetune_structured.local.generate.sequence import GeneratedSequence
from llama_index_finetune_structured.local.model.adapter import add_lora
from llama_index_finetune_structured.local.model.devices import best_device, peak_memory, precision
from llama_index_finetune_structured.local.model.prompts import TokenRow
from llama_index_finetune_structured.local.train.batches import batches
from llama_index_finetune_structured.local.train.memory import free_memory, plan_rows, shape_of
from llama_index_finetune_structured.local.train.out_of_memory import is_out_of_memory, release_memory
from llama_index_finetune_structured.local.train.packing import PackedBatch, pack
from llama_index_finetune_structured.local.train.settings import LoraSettings
from llama_index_finetune_structured.local.train.trainer import Trainer

BATCH, RATE, WARM = 8, 2e-4, 2
# Dense bf16 TFLOP/s of the data sheets, by a part of the device's name; fp16 where there is no bf16.
PEAKS = {
    "H200": 989, "H100": 989, "GH200": 989, "B200": 2250, "A100": 312, "A800": 312, "L40S": 362, "L40": 181,
    "L4": 121, "A10": 125, "RTX 4090": 165, "RTX 3090": 71, "RTX 5090": 210, "T4": 65, "V100": 125,
}  # fmt: skip


def _grouped(kind: type, width: int, inner: int, layers: int, heads: int, **more: Any) -> Any:
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    common = {"num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": 128}
    return kind(**sizes, **common | {"max_position_embeddings": 32768, "pad_token_id": 0} | more)


TINY = {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 256}
QWEN = {"vocab_size": 151936, "tie_word_embeddings": True}
MODELS: dict[str, Callable[[], Any]] = {
    "qwen3-0.6b": lambda: _grouped(Qwen3Config, 1024, 3072, 28, 16, **QWEN),
    "qwen3-1.7b": lambda: _grouped(Qwen3Config, 2048, 6144, 28, 16, **QWEN),
    "qwen3-4b": lambda: _grouped(Qwen3Config, 2560, 9728, 36, 32, **QWEN),
    "llama-3.1-8b": lambda: _grouped(LlamaConfig, 4096, 14336, 32, 32, vocab_size=128256),
}
TINY_MODEL: dict[str, Callable[[], Any]] = {
    "tiny-qwen3": lambda: _grouped(Qwen3Config, 32, 64, 2, 4, **TINY, tie_word_embeddings=True)
}


@dataclass(frozen=True)
class Sizes:
    """Tokens of what prompts are made of, and how much is measured."""

    schema: int = 700
    chunk: int = 900
    question: int = 30
    answer: int = 160
    steps: int = 8
    prompts: int = 32
    new_tokens: int = 96


TINY_SIZES = Sizes(schema=40, chunk=40, question=4, answer=8, steps=3, prompts=10, new_tokens=6)


def rows_of(kind: str, sizes: Sizes, count: int, vocabulary: int) -> list[TokenRow]:
    """``count`` rows of random tokens, equally long in every kind."""
    draw = random.Random(0)

    def tokens(number: int) -> tuple[int, ...]:
        return tuple(draw.randrange(2, vocabulary) for _ in range(number))

    schema, chunk, rows = tokens(sizes.schema), tokens(sizes.chunk), list[TokenRow]()
    for number in range(count):
        if kind == "unshared":
            schema = tokens(sizes.schema)
        if kind != "questions" or number % 8 == 0:
            chunk = tokens(sizes.chunk)
        rows.append(TokenRow(schema + chunk + tokens(sizes.question), tokens(sizes.answer)))
    return rows


def new_model(config: Any) -> Any:
    """A model with random weights, the same each time, made on the device."""
    torch.manual_seed(0)
    with torch.device(best_device()):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=precision()).eval()


def lora_model(config: Any) -> Any:
    """With untrained LoRA weights, the same each time."""
    model = new_model(config)
    torch.manual_seed(0)
    return add_lora(model, rank=16, alpha=32)


def synchronize() -> None:
    """Wait until the device has computed everything."""
    if best_device() != "cpu":
        torch.accelerator.synchronize()


@contextmanager
def fresh_memory() -> Iterator[None]:
    """Begin with nothing on the device and no peak."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield


def train_ours(config: Any, rows: list[TokenRow]) -> list[dict[str, float]]:
    """Loss and seconds of each step of this package's trainer."""
    settings = LoraSettings(batch_size=BATCH, epochs=1, learning_rate=RATE, checkpoint_steps=10**6)
    model = lora_model(config)
    weights = dict(model.get_base_model().named_parameters())
    shapes = {name: tuple(w.shape) for name, w in weights.items() if not w.requires_grad}
    size = sum(w.nbytes for w in weights.values() if not w.requires_grad)
    plan = plan_rows(
        shape_of(config, shapes, size, precision().itemsize),
        settings,
        rows,
        None if (free := free_memory()) is None else free + size,
    )
    steps: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model, rows, settings, Path(folder), fingerprint="benchmark", plan=plan)
        if not trainer.loss.packed:
            raise RuntimeError("packing fell back to single rows: see the log above")
        trainer.run(on_step=steps.append)
    return steps


def train_trl(config: Any, rows: list[TokenRow], *, checkpointed: bool) -> list[dict[str, float]]:
    """Loss and seconds of each step of TRL's trainer, on the batches of ours."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    ordered = [row for batch in batches(rows, BATCH, seed="0:0") for row in batch]
    lengths = [(len(row.prompt), len(row.answer)) for row in ordered]
    data = {
        "input_ids": [[*row.prompt, *row.answer] for row in ordered],
        "completion_mask": [[0] * prompt + [1] * answer for prompt, answer in lengths],
    }
    steps: list[dict[str, float]] = []

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            synchronize()
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            synchronize()
            steps.append({"seconds": time.perf_counter() - self.started})

        def on_log(self, _args: Any, _state: Any, _control: Any, logs: Any = None, **__: Any) -> None:
            if logs and "loss" in logs:
                steps[-1]["loss"] = float(logs["loss"])

    model = lora_model(config)
    model.config.use_cache = False
    options = trl_options()
    if options["padding_free"]:
        model.set_attn_implementation("flash_attention_2")
    total = len(rows) // BATCH
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            output_dir=folder,
            use_cpu=best_device() == "cpu",
            per_device_train_batch_size=BATCH,
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
            gradient_checkpointing=checkpointed,
            **options,
        )
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=_tokenizer(), pad_token="<pad>", eos_token="<end>"
        )
        SFTTrainer(
            model=model,
            args=settings,
            train_dataset=Dataset.from_dict(data),
            processing_class=tokenizer,
            callbacks=[Clock()],
        ).train()
    return steps


def _tokenizer() -> Any:
    """Of two tokens: TRL needs one, though all rows are token ids."""
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<pad>"))


def trl_options() -> dict[str, Any]:
    """What makes TRL fast on this device."""
    on_gpu = torch.cuda.is_available()
    return {
        "bf16": precision() == torch.bfloat16,
        "use_liger_kernel": on_gpu and importlib.util.find_spec("liger_kernel") is not None,
        "padding_free": on_gpu and transformers.utils.is_flash_attn_2_available(),
        "optim": "adamw_torch_fused" if on_gpu else "adamw_torch",
    }


def least_tflop(config: Any, batch: PackedBatch) -> float:
    """TFLOP that a step on these rows takes at least: forward, and backward to the activations."""
    heads, width = config.num_attention_heads * config.head_dim, config.hidden_size
    keys = config.num_key_value_heads * config.head_dim
    layer = 2 * width * heads + 2 * width * keys + 3 * width * config.intermediate_size
    pairs = sum(
        (s.stop - s.start) * (sum(b - a for a, b in s.ancestors) + (s.stop - s.start + 1) / 2)
        for s in batch.segments
    )
    linear = 2 * len(batch.ids) * config.num_hidden_layers * layer
    attention = 4 * pairs * config.num_hidden_layers * heads
    head = 2 * len(batch.labels) * width * config.vocab_size
    return (2 * linear + 3 * attention + 2 * head) / 1e12  # frozen weights have no gradient, keys have


def peak_tflops() -> tuple[float, str]:
    """Of the device, and where that is from."""
    name = device_name()
    known = [part for part in PEAKS if part in name]
    if known:
        return PEAKS[max(known, key=len)], "data sheet"
    size = 4096 if best_device() != "cpu" else 512
    factor = torch.randn(size, size, device=best_device(), dtype=precision())
    times = []
    for _ in range(10):
        synchronize()
        started = time.perf_counter()
        factor @ factor
        synchronize()
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times) / 1e12, "measured"


def device_name() -> str:
    """The GPU's name, or that of the processor's kind."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"{best_device()} {platform.machine()}"


def training(config: Any, kind: str, sizes: Sizes) -> dict[str, Any]:
    """Figures of both trainers on rows of a kind."""
    rows = rows_of(kind, sizes, (WARM + sizes.steps) * BATCH, config.vocab_size)
    made = batches(rows, BATCH, seed="0:0")
    flat = pack(made[-1])
    plain = [pack([row]) for row in made[-1]]
    tflop = {"ours": least_tflop(config, flat), "trl": sum(least_tflop(config, row) for row in plain)}
    peak, _ = peak_tflops()
    figures: dict[str, Any] = {"tokens_a_step": {"plain": flat.plain_tokens, "packed": len(flat.ids)}}
    losses = {}
    for name, ways in {
        "ours": [lambda: train_ours(config, rows)],
        "trl": [lambda again=again: train_trl(config, rows, checkpointed=again) for again in (False, True)],
    }.items():
        steps, memory, way = first_that_fits(ways)
        if not steps:
            figures[name] = "out of memory"
            continue
        seconds = statistics.median(step["seconds"] for step in steps[WARM:])
        losses[name] = [step["loss"] for step in steps]
        figures[name] = {
            "seconds_a_step": round(seconds, 4),
            "tokens_per_s": round(flat.plain_tokens / seconds),
            "mfu": round(tflop[name] / seconds / peak, 4),
            "peak_gib": None if memory is None else round(memory / 2**30, 2),
            "checkpointed_after_out_of_memory": way > 0,
        }
    if len(losses) == 2:
        pairs = zip(losses["ours"], losses["trl"], strict=True)
        figures["largest_loss_difference"] = max(abs(a - b) for a, b in pairs)
        figures["ratio"] = round(figures["trl"]["seconds_a_step"] / figures["ours"]["seconds_a_step"], 2)
    return figures


def first_that_fits(ways: Sequence[Callable[[], Any]]) -> tuple[Any, int | None, int]:
    """The result of the first way that does not run out of memory, its peak, and its number; None where none fits."""
    for number, way in enumerate(ways):
        with fresh_memory():
            try:
                return way(), peak_memory(), number
            except Exception as error:
                cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
                if not is_out_of_memory(cause):
                    raise
                release_memory(cause)
                release_memory(error)
    return None, None, len(ways)


def serving(config: Any, sizes: Sizes) -> dict[str, Any]:
    """Answers of this package's engine, with and without drafts, and of ``generate``; tokens a second."""
    rows = rows_of("shared_schema", sizes, sizes.prompts, config.vocab_size)
    prompts = [row.prompt for row in rows]
    ways = {"ours": serve_ours, "ours, no drafts": serve_without_drafts, "generate": serve_plainly}
    figures: dict[str, Any] = {}
    answers = {}
    for name, way in ways.items():

        def timed(way: Any = way) -> tuple[list[list[int]], float]:
            model = new_model(config)
            way(model, prompts[:2], 2)  # kernels are chosen in the first call
            synchronize()
            started = time.perf_counter()
            found = way(model, prompts, sizes.new_tokens)
            synchronize()
            return found, time.perf_counter() - started

        result, memory, _ = first_that_fits([timed])
        if result is None:
            figures[name] = "out of memory"
            continue
        answers[name], seconds = result
        figures[name] = {
            "seconds": round(seconds, 3),
            "tokens_per_s": round(sum(map(len, answers[name])) / seconds),
            "peak_gib": None if memory is None else round(memory / 2**30, 2),
        }
    if len(answers) == len(ways):
        same = zip(answers["ours"], answers["generate"], strict=True)
        figures["same_answers"] = sum(a == b for a, b in same) / len(prompts)
        figures["ratio"] = {
            name: round(figures["generate"]["seconds"] / figures[name]["seconds"], 2)
            for name in list(ways)[:2]
        }
    return figures


def serve_ours(model: Any, prompts: Sequence[tuple[int, ...]], new_tokens: int) -> list[list[int]]:
    """The engine's answers, 8 at a time. No token ends them."""
    vocabulary = model.config.vocab_size
    model.set_attn_implementation("sdpa")  # else the one of the engine before it
    engine = GenerationEngine(model, stop_ids=[vocabulary], pad_id=0, batch_size=BATCH)
    asked = [engine.submit(GenerationRequest(prompt, new_tokens)) for prompt in prompts]
    return [list(answer.result().tokens) for answer in asked]


def serve_without_drafts(model: Any, prompts: Sequence[tuple[int, ...]], new_tokens: int) -> list[list[int]]:
    """As ``serve_ours``, one token a step."""
    with patch.object(GeneratedSequence, "draft", lambda _: []):
        return serve_ours(model, prompts, new_tokens)


@torch.inference_mode()
def serve_plainly(model: Any, prompts: Sequence[tuple[int, ...]], new_tokens: int) -> list[list[int]]:
    """transformers' own answers, 8 at a time; all prompts are equally long."""
    answers = []
    for start in range(0, len(prompts), BATCH):
        ids = torch.tensor(prompts[start : start + BATCH], device=model.device)
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=model.config.vocab_size,
            pad_token_id=0,
        )
        answers += made[:, ids.shape[1] :].tolist()
    return answers


def measured(
    models: dict[str, Callable[[], Any]], sizes: Sizes, minutes: float
) -> Iterator[tuple[str, str, Any]]:
    """Model, part and figures, or what hindered them."""
    end = time.monotonic() + 60 * minutes
    kinds = ("questions", "shared_schema", "unshared")
    for name, config in models.items():
        for part in (*kinds, "serving"):
            if time.monotonic() > end:
                yield name, part, "skipped: no time left"
                continue
            try:
                found = training(config(), part, sizes) if part in kinds else serving(config(), sizes)
            except (
                Exception
            ) as error:  # of one part: a GPU is lent for minutes, and the others are worth having
                traceback.print_exc()
                found = f"failed: {type(error).__name__}: {error}"
            yield name, part, found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10, help="nothing new begins after that many")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the figures to this file, by device")
    parser.add_argument("--dry-run", action="store_true", help="a tiny model and rows")
    options = parser.parse_args()
    models = TINY_MODEL if options.dry_run else {name: MODELS[name] for name in options.models}
    sizes = TINY_SIZES if options.dry_run else Sizes()
    peak, source = peak_tflops()
    about = {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl_options()}
    about |= {"precision": str(precision()), "peak_tflops": round(peak, 3), "peak_is": source}
    print(f"{device_name()}: {about}")
    known = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    figures: dict[str, Any] = {}
    for name, part, found in measured(models, sizes, options.minutes):
        figures.setdefault(name, {})[part] = found
        print(f"{name:14}{part:16}{json.dumps(found)}", flush=True)
        if options.json:
            ours = {**about, "sizes": asdict(sizes), "models": figures}
            options.json.write_text(json.dumps({**known, device_name(): ours}, indent=2) + "\n")
    if any(str(found).startswith("failed") for parts in figures.values() for found in parts.values()):
        sys.exit("a part failed: see the errors above")


if __name__ == "__main__":
    main()
