"""On a device of its own, training and serving give the CPU's results, and wait for the device once a step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
COUNTS = """
import torch
from tests.local.fake_gpu import NAME, fake_gpu
gpu = fake_gpu()
there, here = torch.arange(6.0, device="cpu").to(NAME), torch.arange(6.0)
def waits(compute):
    gpu.reset()
    compute()
    return sum(gpu.syncs.values())
for compute in (
    lambda: there[2].item(), lambda: there.tolist(), lambda: there.cpu(), lambda: bool((there > 0).any()),
    lambda: float(there.sum()), lambda: there[there > 2], lambda: there.nonzero(), lambda: int(there.argmax()),
    lambda: torch.repeat_interleave(there, torch.tensor([1, 2, 0, 1, 1, 1], device=NAME)),
    lambda: here.copy_(there),
):
    assert waits(compute) == 1
for compute in (
    lambda: there + 1, lambda: there[torch.tensor([1, 2], device=NAME)], lambda: there.masked_fill(there > 2, 0),
    lambda: torch.where(there > 1, there, 0), lambda: here.to(NAME), lambda: there.argmax(), lambda: there.topk(2),
):
    assert waits(compute) == 0
other = there.to(NAME + ":1")
assert (other.device.index, (other + 1).device.index, (other + 1).tolist()[5]) == (1, 1, 6.0)
for compute in (
    lambda: there + here, lambda: there @ here, lambda: torch.cat([there, here]), lambda: there + other,
    lambda: torch.stack([there.sum(), here.sum()]), lambda: there[other.long()], lambda: other.sum() * there,
):
    try:
        compute()
    except RuntimeError as error:
        assert "two devices" in str(error)
    else:
        raise AssertionError("a mismatch was not seen")
there + torch.tensor(2.0)
"""


def _python(*arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LLAMA_INDEX_FINETUNE_STRUCTURED_PRECISION": "fp32"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def runs() -> Any:
    return json.loads(_python("-m", "tests.local.fake_gpu_runs").splitlines()[-1])


def test_the_fake_device_counts_what_a_real_one_waits_for_and_refuses_mixed_devices() -> None:
    _python("-c", COUNTS)


def test_the_accelerator_is_the_best_device(runs: Any) -> None:
    assert runs["best_device"] == runs["accelerator"]


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_training_on_a_device_has_the_losses_of_the_cpu_also_resumed(runs: Any, kind: str) -> None:
    seen = runs["training"][kind]
    assert seen["gpu"]["losses"] == seen["cpu"]["losses"]


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_training_over_two_devices_has_the_losses_of_the_cpu_also_resumed(runs: Any, kind: str) -> None:
    seen = runs["training"][kind]
    # The norms of both devices' gradients are added in another order.
    assert seen["gpus"]["losses"] == pytest.approx(seen["cpu"]["losses"], rel=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
@pytest.mark.parametrize("place", ["gpu", "gpus"])
def test_a_training_step_waits_for_the_device_once(runs: Any, kind: str, place: str) -> None:
    assert runs["training"][kind][place]["syncs"] == {"trainer.py:_gradient": 1}


@pytest.mark.parametrize("kind", ["llama", "gemma2", "qwen2"])
def test_answers_on_a_device_are_those_of_the_cpu(runs: Any, kind: str) -> None:
    assert runs[kind]["gpu"]["answers"] == runs[kind]["cpu"]["answers"]


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_answers_over_two_devices_are_those_of_the_cpu(runs: Any, kind: str) -> None:
    assert runs[kind]["gpus"]["answers"] == runs[kind]["cpu"]["answers"]


@pytest.mark.parametrize("place", ["gpu", "gpus"])
def test_answers_in_padded_batches_are_those_of_the_cpu(runs: Any, place: str) -> None:
    assert runs["padded"][place] == runs["padded"]["cpu"]


@pytest.mark.parametrize("kind", ["llama", "gemma2", "qwen2"])
def test_a_step_of_serving_waits_for_the_device_once_and_uploads_once(runs: Any, kind: str) -> None:
    seen = runs[kind]["gpu"]
    assert seen["syncs"] == {"position_logits.py:position_logits": seen["steps"]}
    own = {place: count for place, count in seen["uploads"].items() if not place.startswith("modeling_")}
    assert own == {"devices.py:uploaded": seen["steps"]}  # transformers' models upload too


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_a_step_of_serving_over_two_devices_waits_once_and_copies_its_positions_to_the_second_once(
    runs: Any, kind: str
) -> None:
    seen = runs[kind]["gpus"]
    assert seen["syncs"] == {"position_logits.py:position_logits": seen["steps"]}
    theirs = ("modeling_", "operations.py")  # of transformers, and of accelerate, which moves the states
    own = {place: count for place, count in seen["uploads"].items() if not place.startswith(theirs)}
    assert own == {"devices.py:uploaded": seen["steps"], "ragged_attention.py:batches": seen["steps"]}


@pytest.fixture(scope="module")
def divided() -> Any:
    return json.loads(_python("-m", "tests.local.divided_runs").splitlines()[-1])


def test_a_base_that_is_loaded_over_all_devices_is_trained_resumed_and_served_as_on_the_cpu(
    divided: Any,
) -> None:
    assert divided["auto"]["beside"]["devices"] == ["fakegpu:0", "fakegpu:1"]
    own, cpu = (divided[device]["training"] for device in ("auto", "cpu"))
    assert own["losses"] == pytest.approx(cpu["losses"], rel=1e-5)
    assert own["answers"] == cpu["answers"]


def test_an_adapter_that_was_trained_over_two_devices_is_exported(divided: Any) -> None:
    answer, of_export = divided["auto"]["training"]["answers"]
    assert answer == of_export


def test_adapters_share_a_batch_over_two_devices_with_the_answers_of_the_cpu(divided: Any) -> None:
    assert divided["auto"]["beside"]["answers"] == divided["cpu"]["beside"]["answers"]


def test_a_base_that_all_devices_together_have_no_room_for_is_refused(divided: Any) -> None:
    assert "do not fit into the memory that is free on fakegpu:0 and fakegpu:1 together" in divided["refusal"]
