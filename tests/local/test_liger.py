"""Liger's kernels are used on CUDA where they are installed, in one model alone, and only where they compute the same.

There is no GPU here: the package is one of the tests, and the model says that it is on CUDA.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.models.llama import modeling_llama

from llama_index_finetune_structured.local.model.adapter import add_lora
from llama_index_finetune_structured.local.model.prompts import TokenRow
from llama_index_finetune_structured.local.train.liger import use_liger
from llama_index_finetune_structured.local.train.loss import AnswerLoss
from tests import tiny

ROWS = [TokenRow((5, 6, 7, 8), (9, 10))]


class _OnCuda:
    """A PEFT model that says it is on CUDA."""

    def __init__(self, model: Any) -> None:
        self.get_base_model = model.get_base_model

    def parameters(self) -> Any:
        return iter([SimpleNamespace(device=torch.device("cuda"))])


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An installed Liger, whose norm has the ``factor``; ``asked``: what it was asked to leave."""
    made: dict[str, Any] = {"factor": 1.0, "asked": None}

    def apply(model: Any, **options: Any) -> None:
        made["asked"] = options
        vars(modeling_llama)["LlamaRMSNorm"] = None
        norm = model.model.norm
        own = norm.forward
        norm.forward = lambda states: own(states) * made["factor"]
        if made["factor"] == 0:
            raise RuntimeError("no such kernel")

    monkeypatch.setattr(
        modeling_llama, "LlamaRMSNorm", modeling_llama.LlamaRMSNorm
    )  # restored after the test
    package, part = ModuleType("liger_kernel"), ModuleType("liger_kernel.transformers")
    part._apply_liger_kernel_to_instance = apply  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel", package)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", part)
    return made


def _model() -> tuple[Any, AnswerLoss]:
    torch.manual_seed(0)
    model = add_lora(tiny.model("llama"), rank=2, alpha=4)
    return model, AnswerLoss.for_model(model)


def test_kernels_are_used_in_this_model_alone(
    kernels: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    model, loss = _model()
    own = modeling_llama.LlamaRMSNorm
    assert use_liger(_OnCuda(model), lambda: loss.mean(ROWS))
    assert "forward" in vars(model.get_base_model().model.norm)
    assert modeling_llama.LlamaRMSNorm is own
    assert kernels["asked"] == {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}
    assert "Liger's kernels compute what they have of LlamaForCausalLM" in caplog.text


@pytest.mark.parametrize(("factor", "reason"), [(1000.0, " for "), (0.0, "RuntimeError: no such kernel")])
def test_kernels_that_fail_or_compute_otherwise_leave_the_model_as_it_was(
    kernels: dict[str, Any], caplog: pytest.LogCaptureFixture, factor: float, reason: str
) -> None:
    model, loss = _model()
    before, own = loss.mean(ROWS), modeling_llama.LlamaRMSNorm
    kernels["factor"] = factor
    assert not use_liger(_OnCuda(model), lambda: loss.mean(ROWS))
    assert loss.mean(ROWS) == before
    assert modeling_llama.LlamaRMSNorm is own
    assert "Liger's kernels are not used" in caplog.text
    assert reason in caplog.text


def test_on_a_cpu_and_without_the_package_nothing_changes(
    kernels: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, loss = _model()
    assert not use_liger(model, lambda: loss.mean(ROWS))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", None)
    assert not use_liger(_OnCuda(model), lambda: loss.mean(ROWS))
    assert kernels["asked"] is None
