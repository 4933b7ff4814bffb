"""The device and the precision are chosen by what the hardware has; fp16 trains with a scaled loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llama_index_finetune_structured import LoraFinetuneEngine, LoraLLM
from llama_index_finetune_structured.errors import ConfigurationError, EngineError
from llama_index_finetune_structured.local.generate.prefix_cache import prefix_cache_bytes
from llama_index_finetune_structured.local.model import devices
from llama_index_finetune_structured.local.model.adapter import add_lora
from llama_index_finetune_structured.local.model.devices import (
    best_device,
    chosen_device,
    peak_memory,
    precision,
)
from llama_index_finetune_structured.local.model.prompts import TokenRow
from llama_index_finetune_structured.local.train import gradient_scale
from llama_index_finetune_structured.local.train.distributed import DistributedRun
from llama_index_finetune_structured.local.train.gradient_scale import GradientScale
from llama_index_finetune_structured.local.train.memory import free_memory
from llama_index_finetune_structured.local.train.settings import LoraSettings
from llama_index_finetune_structured.local.train.trainer import Trainer
from tests import exporting, tiny

ROWS = [TokenRow((*range(2, 40), n, 7), (n + 3, 8, 20 + n)) for n in range(2, 10)]
SETTINGS = LoraSettings(batch_size=4, epochs=3, learning_rate=1e-3, checkpoint_steps=2)


@pytest.mark.parametrize(("has_bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_that_only_emulates_bf16_computes_in_fp16(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, dtype: torch.dtype
) -> None:
    monkeypatch.delenv("LLAMA_INDEX_FINETUNE_STRUCTURED_PRECISION")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or has_bf16
    )
    assert best_device() == "cuda"
    assert precision() is dtype


@pytest.mark.parametrize(("macos_14", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_mac_computes_on_its_gpu(
    monkeypatch: pytest.MonkeyPatch, macos_14: bool, dtype: torch.dtype
) -> None:
    monkeypatch.delenv("LLAMA_INDEX_FINETUNE_STRUCTURED_PRECISION")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *_: macos_14)
    assert best_device() == "mps"
    assert precision() is dtype


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1", "cpu"])
def test_a_device_is_chosen_by_its_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert chosen_device(name) == name
    with pytest.raises(ConfigurationError, match="this machine has cuda:0, cuda:1, cpu: name one of these"):
        chosen_device("cuda:2")


@pytest.mark.parametrize(("gpus", "chosen"), [(2, "auto"), (1, "cuda"), (0, "cpu")])
def test_auto_is_all_gpus_where_there_are_several(
    monkeypatch: pytest.MonkeyPatch, gpus: int, chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert chosen_device("auto") == chosen


def test_over_several_gpus_precision_and_memory_are_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_INDEX_FINETUNE_STRUCTURED_PRECISION")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda name: (int(name[-1]) + 2, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 5)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 4)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda name: int(name[-1]) + 7)
    assert free_memory(device="auto") == (2 + 1) + (3 + 1)
    assert peak_memory("cuda:0", "cuda:1") == 7 + 8
    asked = list[str]()
    monkeypatch.setattr(devices, "_has_bf16", lambda name: asked.append(name) or name == "cuda:0")
    assert precision("auto") is torch.float16
    assert asked == ["cuda:0", "cuda:1"]


def test_on_the_cpu_beside_a_gpu_the_precision_is_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_INDEX_FINETUNE_STRUCTURED_PRECISION")
    own = precision()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    assert (precision("cpu"), precision()) == (own, torch.float16)


def test_a_device_that_the_machine_lacks_ends_training_and_serving_before_anything_is_loaded(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_index_finetune_structured.local.model.base_models.causal_model", pytest.fail)
    config = LoraSettings(device="cuda:99")
    with pytest.raises(ConfigurationError, match=r"device 'cuda:99': this machine has .*cpu: name one"):
        LoraFinetuneEngine(
            exporting.colours(4), base_model=tiny_llama, output_dir=tmp_path, config=config
        ).finetune()
    with pytest.raises(ConfigurationError, match=r"device 'cuda:99': this machine has .*cpu: name one"):
        LoraLLM(base_model=str(tiny_llama), device="cuda:99").complete("a")


def test_a_named_device_answers_as_the_best_one_does(tiny_llama: Path) -> None:
    named, best = (
        LoraLLM(base_model=str(tiny_llama), device=name, max_new_tokens=4) for name in ("cpu", None)
    )
    assert named.complete("a").text == best.complete("a").text


def test_each_of_several_processes_has_the_device_that_it_is_given() -> None:
    processes = DistributedRun()
    processes.world_size = 2
    assert processes.device(None) == best_device()
    with pytest.raises(ConfigurationError, match="leave device out, and choose GPUs by CUDA_VISIBLE_DEVICES"):
        processes.device("cpu")


def test_the_prefix_cache_grows_with_the_free_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (64 * 2**30, 80 * 2**30))
    gpu, other = torch.device("cuda:0"), torch.device("cuda:1")
    assert prefix_cache_bytes([gpu]) == 8 * 2**30
    assert prefix_cache_bytes([gpu, other]) == 16 * 2**30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**30, 80 * 2**30))
    assert prefix_cache_bytes([gpu]) == prefix_cache_bytes([torch.device("cpu")]) == 512 * 2**20


def _trainer(folder: Path, dtype: torch.dtype) -> Trainer:
    torch.manual_seed(0)
    model = add_lora(tiny.model("llama").to(dtype), rank=4, alpha=8)
    return Trainer(model, ROWS, SETTINGS, folder, fingerprint="test")


def _losses(trainer: Trainer) -> list[float]:
    return [step["loss"] for step in trainer.run().steps]


def test_fp16_trains_as_fp32_with_a_scale(tmp_path: Path) -> None:
    half, full = _trainer(tmp_path / "half", torch.float16), _trainer(tmp_path / "full", torch.float32)
    assert half.scale.value == 2**16
    assert not full.scale.used
    assert _losses(half) == pytest.approx(_losses(full), rel=2e-3)


def test_a_step_whose_gradient_overflows_is_computed_again_with_a_smaller_scale(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path / "over", torch.float16)
    trainer.scale.value = 2.0**60
    losses = _losses(trainer)
    assert trainer.step == trainer.total_steps == len(losses)
    assert trainer.scale.value < 2**60
    assert losses == pytest.approx(_losses(_trainer(tmp_path / "plain", torch.float16)), rel=2e-3)


def test_a_gradient_that_no_scale_makes_finite_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = _trainer(tmp_path, torch.float16)
    monkeypatch.setattr(GradientScale, "undo", lambda _, weights: weights[0].grad.fill_(float("inf")))
    with pytest.raises(EngineError, match="gradient's norm is"):
        trainer.run()
    assert trainer.scale.value == 2**-14


def test_a_resumed_fp16_run_has_the_losses_and_scale_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradient_scale, "_PATIENCE", 3)
    whole = _trainer(tmp_path / "whole", torch.float16)
    losses = _losses(whole)
    assert whole.scale.value == 2**18  # doubled after three steps, and after three more
    first = _trainer(tmp_path / "parts", torch.float16)
    for batch in first._batches[:4]:
        first._train_step(batch)
    first._save()
    resumed = _trainer(tmp_path / "parts", torch.float16)
    assert resumed.scale == first.scale
    assert _losses(resumed) == losses
    assert resumed.scale == whole.scale
