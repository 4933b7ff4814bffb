"""Training and serving on the fake GPU and on the CPU: ``python -m tests.local.fake_gpu_runs`` prints what was seen."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from llama_index_finetune_structured.local.generate.decoders import BatchDecoder, PaddedDecoder
from llama_index_finetune_structured.local.generate.grammar import GrammarCache
from llama_index_finetune_structured.local.generate.kv_cache import supports_kv_cache_slots
from llama_index_finetune_structured.local.generate.request import GenerationRequest, Sampling
from llama_index_finetune_structured.local.model.adapter import add_lora
from llama_index_finetune_structured.local.model.devices import best_device
from llama_index_finetune_structured.local.model.prompts import TokenRow
from llama_index_finetune_structured.local.train.settings import LoraSettings
from llama_index_finetune_structured.local.train.trainer import Trainer
from tests import tiny
from tests.local.fake_gpu import NAME, FakeGpu, divided, fake_gpu, moved

_SHARED = tuple(n % 250 + 2 for n in range(60))
ROWS = [TokenRow((*_SHARED, n, 7, 9), (n + 3, 8, 20 + n, 5)) for n in range(2, 10)]
_SETTINGS = LoraSettings(batch_size=4, epochs=2, learning_rate=1e-3)
_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "size": {"type": "integer"}},
    "required": ["name", "size"],
    "additionalProperties": False,
}


def _as_is(model: Any) -> Any:
    return model


def _losses(place: Callable[[Any], Any], gpu: FakeGpu, kind: str) -> dict[str, Any]:
    """Losses of a run that is resumed in the middle, on rows and held-out ones, and what one step waits for."""
    losses: list[float] = []
    settings = _SETTINGS.model_copy(update={"checkpoint_layers": kind == "gemma2"})
    with tempfile.TemporaryDirectory() as folder:

        def trainer() -> Trainer:
            torch.manual_seed(0)
            model = add_lora(place(tiny.model(kind)), rank=4, alpha=8)
            return Trainer(model, ROWS, settings, Path(folder), fingerprint="fake")

        first = trainer()
        first._train_step(first._batches[0])
        gpu.reset()
        losses += [first._train_step(first._batches[1])["loss"]]
        seen = gpu.seen()
        first._save()
        resumed = trainer()
        log = resumed.run(ROWS[:2])
        losses += [entry["loss"] for entry in (*log.steps[first.step :], *log.validation)]
        assert resumed.loss.packed
    return {"losses": losses, **seen}


@torch.inference_mode()
def _answers(place: Callable[[Any], Any], gpu: FakeGpu, kind: str) -> dict[str, Any]:
    """Answers with and without a grammar, greedy and drawn, and what the steps wait for."""
    with torch.inference_mode(False):
        model = place(tiny.model(kind).eval())
    assert supports_kv_cache_slots(model)
    grammar = GrammarCache(tiny.tokenizer(), vocabulary=258, stop_id=1).get(_SCHEMA)
    held: dict[str, Any] = {"grammar": grammar, "probabilities": True}
    free: dict[str, Any] = {}
    drawn: dict[str, Any] = {"sampling": Sampling(0.8, seed=3)}

    def decode(decoder: BatchDecoder, *options: Any) -> list[tuple[int, ...]]:
        asked = [GenerationRequest(row.prompt, 24, **option) for row in ROWS[:3] for option in options]
        for request in asked:
            decoder.join(request)
        gpu.reset()
        while decoder.sequences:
            decoder.step()
            gpu.steps += 1
        return [request.future.result().tokens for request in asked]

    decoder = BatchDecoder(model, frozenset([1]))
    answers = decode(decoder, held, free, drawn)
    plain = decode(decoder, free)
    return {"answers": [*answers, *plain], **gpu.seen()}


@torch.inference_mode()
def _padded(place: Callable[[Any], Any], gpu: FakeGpu) -> dict[str, Any]:
    """Answers in padded batches, which models with other state get."""
    with torch.inference_mode(False):
        model = place(tiny.model("llama").eval())
    decoder = PaddedDecoder(model, frozenset([1]), 1)
    asked = [GenerationRequest(row.prompt[n:], 6) for n, row in enumerate(ROWS[:3])]
    for request in asked:
        decoder.join(request)
    decoder.step()
    return {"answers": [request.future.result().tokens for request in asked]}


def main() -> None:
    gpu = fake_gpu()
    places = {"gpu": moved, "gpus": divided, "cpu": _as_is}
    seen: dict[str, Any] = {
        "best_device": best_device(),
        "accelerator": NAME,
        "training": {
            kind: {name: _losses(place, gpu, kind) for name, place in places.items()}
            for kind in ("llama", "gemma2")
        },
        "padded": {name: _padded(place, gpu) for name, place in places.items()},
    }
    for kind in ("llama", "gemma2", "qwen2"):
        found = places if kind != "qwen2" else {"gpu": moved, "cpu": _as_is}
        seen[kind] = {name: _answers(place, gpu, kind) for name, place in found.items()}
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
