"""A device that is out of memory is tried once more with less; then the error says what was needed and what to do."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from llama_index_finetune_structured import LoraSettings
from llama_index_finetune_structured.errors import EngineError
from llama_index_finetune_structured.local.model.adapter import add_lora
from llama_index_finetune_structured.local.model.lora_weights import lora_weights
from llama_index_finetune_structured.local.model.prompts import TokenRow
from llama_index_finetune_structured.local.train.memory import MemoryPlan
from llama_index_finetune_structured.local.train.out_of_memory import is_out_of_memory
from llama_index_finetune_structured.local.train.trainer import Trainer
from tests import tiny

ROWS = [TokenRow((60 + n,) * (20 + n), (20 + n, 30, 1)) for n in range(8)]
CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory")


def _trainer(folder: Path, plan: MemoryPlan | None = None, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    model = add_lora(tiny.model("llama"), rank=4, alpha=8)
    config = LoraSettings(rank=4, alpha=8, batch_size=4, epochs=3, checkpoint_steps=1, **settings)
    return Trainer(model, ROWS, config, folder, fingerprint="f", plan=plan)


def _fails_where(trainer: Trainer, error: Exception, when: Callable[[int], bool]) -> list[int]:
    """Make the last layer raise the error where ``when`` is true of the tokens of its input; returns the tokens."""
    seen: list[int] = []

    def hook(_module: Any, inputs: Any) -> None:
        seen.append(inputs[0].shape[1])
        if when(seen[-1]):
            raise error

    trainer.model.get_base_model().model.layers[-1].mlp.register_forward_pre_hook(hook)
    return seen


def _same(one: Trainer, other: Trainer) -> bool:
    return all(
        torch.equal(weight, lora_weights(other.model)[name])
        for name, weight in lora_weights(one.model).items()
    )


@pytest.mark.parametrize("error", [CUDA, CPU], ids=["cuda", "cpu"])
def test_a_run_that_had_too_little_memory_ends_with_the_bytes_of_one_that_began_with_smaller_pieces(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    short = _trainer(tmp_path / "short")
    seen = _fails_where(short, error, lambda tokens: tokens > 60)
    log = short.run(ROWS[:2])
    assert len(log.steps) == 6
    assert max(seen[1:]) <= 60
    assert caplog.text.count("Out of memory with") == 1
    assert "in one forward pass: going on with at most" in caplog.text
    small = _trainer(tmp_path / "small", piece_tokens=short.loss.piece_tokens)
    small.run(ROWS[:2])
    assert _same(short, small)
    layers = [m for m in short.model.modules() if isinstance(m, GradientCheckpointingLayer)]
    assert layers
    assert all(layer.gradient_checkpointing for layer in layers)


def test_the_gradient_of_pieces_before_the_failure_counts_once(tmp_path: Path) -> None:
    failed: list[bool] = []

    def second_piece(_tokens: int) -> bool:
        failed.append(len(failed) == 1)
        return failed[-1]

    short = _trainer(tmp_path / "short", piece_tokens=60)
    _fails_where(short, CUDA, second_piece)
    short.run()
    small = _trainer(tmp_path / "small", piece_tokens=short.loss.piece_tokens)
    small.run()
    assert short.loss.piece_tokens < 60
    assert _same(short, small)


def test_memory_that_never_suffices_is_an_error_with_figures_and_what_to_do(tmp_path: Path) -> None:
    plan = MemoryPlan(
        need=26 * 2**30, free=27 * 2**30, checkpoint_layers=False, piece_tokens=8192, longest=30
    )
    trainer = _trainer(tmp_path, plan)
    seen = _fails_where(trainer, CUDA, lambda _: trainer.step == 2)
    with pytest.raises(EngineError) as raised:
        trainer.run()
    text = str(raised.value)
    assert "step 3 of 6: the memory of cpu does not suffice" in text
    assert "the estimate: about 26.0 GiB of memory are needed, 27.0 GiB are free" in text
    assert "The checkpoint of step 2 is kept: end other programs that use the memory, use a smaller" in text
    assert isinstance(raised.value.__cause__, torch.OutOfMemoryError)
    assert len(seen) == 4, "a forward pass for each of two steps, one that fails, and one try"


def test_a_run_that_failed_resumes_with_the_smaller_pieces_that_it_had(tmp_path: Path) -> None:
    short = _trainer(tmp_path / "short")
    _fails_where(short, CUDA, lambda tokens: tokens > 60)

    def kill(entry: dict[str, float]) -> None:
        if entry["step"] == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        short.run((), kill)
    again = _trainer(tmp_path / "short")
    assert again.loss.piece_tokens == short.loss.piece_tokens < 60
    again.run()
    small = _trainer(tmp_path / "small", piece_tokens=short.loss.piece_tokens)
    small.run()
    assert _same(again, small)


def test_held_out_rows_are_tried_again_too(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path)
    _fails_where(trainer, CUDA, lambda tokens: tokens > 120)
    log = trainer.run(ROWS)
    assert len(log.validation) == 3


def test_no_tensor_of_the_failed_try_is_kept(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path)
    alive: list[weakref.ref[torch.Tensor]] = []

    def hook(_module: Any, inputs: Any) -> None:
        if not alive:
            alive.append(weakref.ref(inputs[0]))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if len(alive) == 1:  # once: a collection looks at every object of the process
            gc.collect()
            assert alive[0]() is None
            alive.append(alive[0])

    trainer.model.get_base_model().model.layers[-1].mlp.register_forward_pre_hook(hook)
    trainer.run()


def test_other_errors_are_not_tried_again(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path)
    seen = _fails_where(trainer, RuntimeError("mat1 and mat2 shapes cannot be multiplied"), lambda _: True)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        trainer.run()
    assert len(seen) == 1
    assert not is_out_of_memory(ValueError("out of memory."))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory. Compile with TORCH_USE_CUDA_DSA"))
