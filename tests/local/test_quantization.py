"""Quantised bases (QLoRA): trained, resumed, served and exported, with 4 or 8 bits a weight."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from llama_index.core.prompts import PromptTemplate
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llama_index_finetune_structured import LoraFinetuneEngine, LoraLLM, LoraSettings, export_adapter, parity
from llama_index_finetune_structured.errors import CheckpointError, ConfigurationError
from llama_index_finetune_structured.local.model.adapter import (
    add_lora,
    attach_adapter,
    merge_adapter,
    read_card,
)
from llama_index_finetune_structured.local.model.base_models import BaseModelFiles, load_model, resolve
from llama_index_finetune_structured.local.model.lora_targets import lora_targets
from llama_index_finetune_structured.local.model.prompts import TokenRow
from llama_index_finetune_structured.local.model.quantization import (
    Quantization,
    is_quantized_layer,
    made_dense,
)
from llama_index_finetune_structured.local.train.fused_linear import fuse_lora
from llama_index_finetune_structured.local.train.loss import AnswerLoss
from llama_index_finetune_structured.local.train.memory import model_shape
from llama_index_finetune_structured.local.train.trainer import Trainer
from tests import exporting
from tests.exporting import Colour
from tests.local import families

pytest.importorskip("bitsandbytes")

BOTH: list[Quantization] = ["nf4", "int8"]
FAMILIES = ["llama", "qwen3", "gemma2", "gpt2", "mixtral", "qwen3_next"]
ROWS = [TokenRow((*range(5, 40), 6), (7, 8, 9)), TokenRow((*range(5, 40), 9), (10, 11))]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exporting.save_base("qwen3", tmp_path_factory.mktemp("base"))


def _engine(
    base: Path, output: Path, quantization: Quantization | None, **settings: Any
) -> LoraFinetuneEngine:
    taken = {"rank": 8, "batch_size": 2, "epochs": 3, "learning_rate": 2e-2, **settings}
    config = LoraSettings(quantization=quantization, **taken)
    return LoraFinetuneEngine(exporting.colours(8), base_model=base, output_dir=output, config=config)


def _trained(base: Path, output: Path, quantization: Quantization | None = None, **settings: Any) -> Path:
    engine = _engine(base, output, quantization, **settings)
    engine.finetune()
    return engine.adapter


@pytest.fixture(scope="module", params=BOTH)
def adapter(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _trained(base, tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def stored(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights that are quantised already, as hubs have them."""
    folder = tmp_path_factory.mktemp("stored")
    load_model(resolve(base), dtype=torch.float32, quantization="nf4").save_pretrained(folder)
    exporting.tokenizer().save_pretrained(folder)
    return folder


def _answers(llm: LoraLLM, count: int = 6) -> list[str]:
    def ask(n: int) -> str:
        return llm.structured_predict(Colour, PromptTemplate(f"Describe colour {n}.")).model_dump_json()

    with ThreadPoolExecutor(llm.batch_size) as pool:
        return list(pool.map(ask, range(count)))


def _quantized(model: Any) -> set[str]:
    return {name for name, layer in model.named_modules() if is_quantized_layer(layer)}


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("quantization", BOTH)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_that_lora_adapts_are_quantised_and_nothing_else(
    family: str, quantization: Quantization, dtype: torch.dtype, tmp_path: Path
) -> None:
    files = BaseModelFiles(family, families.save(family, tmp_path), "")
    plain = load_model(files, dtype=dtype)
    model = load_model(files, dtype=dtype, quantization=quantization)
    targets = lora_targets(plain)
    assert _quantized(model) == set(targets.layers) != set()
    assert {w.dtype for w in model.parameters() if w.is_floating_point()} == {
        w.dtype for w in plain.parameters()
    }
    again = lora_targets(model)
    assert (again.modules, again.parameters, again.share) == (
        targets.modules,
        targets.parameters,
        targets.share,
    )


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
@pytest.mark.parametrize("quantization", BOTH)
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_lora_over_the_dense_form_of_the_same_weights(
    family: str, quantization: Quantization, tmp_path: Path
) -> None:
    files = BaseModelFiles(family, families.save(family, tmp_path), "")

    def gradients(model: Any, *, fused: bool) -> tuple[float, torch.Tensor]:
        torch.manual_seed(3)
        tuned = add_lora(model.eval(), rank=2, alpha=4)
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
        if fused:
            assert fuse_lora(tuned) == len(_quantized(tuned)) > 0
        loss = AnswerLoss.for_model(tuned)
        value = float(loss.backward(ROWS))
        return value, torch.cat([w.grad.flatten() for w in tuned.parameters() if w.grad is not None])

    def load() -> Any:
        return load_model(files, dtype=torch.float32, quantization=quantization)

    value, found = gradients(load(), fused=True)
    dense = made_dense(load())
    assert not _quantized(dense)
    assert not hasattr(dense.config, "quantization_config")
    expected, gradient = gradients(dense, fused=False)
    assert value == pytest.approx(expected, rel=1e-5)
    assert float((found - gradient).norm() / gradient.norm()) < 1e-4


def test_a_resumed_run_has_the_bytes_of_an_uninterrupted_one(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _trained(base, tmp_path / "whole", "nf4", checkpoint_steps=2)
    own = Trainer._train_step

    def fail_later(trainer: Trainer, batch: list[TokenRow]) -> dict[str, float]:
        if trainer.step == 5:
            raise OSError("the power went out")
        return own(trainer, batch)

    monkeypatch.setattr(Trainer, "_train_step", fail_later)
    with pytest.raises(OSError, match="power"):
        _trained(base, tmp_path / "cut", "nf4", checkpoint_steps=2)
    monkeypatch.setattr(Trainer, "_train_step", own)
    resumed = _trained(base, tmp_path / "cut", "nf4", checkpoint_steps=2)
    name = "adapter_model.safetensors"
    assert (resumed / name).read_bytes() == (whole / name).read_bytes()
    layered = _trained(base, tmp_path / "layered", "nf4", checkpoint_steps=2, checkpoint_layers=True)
    assert (layered / name).read_bytes() == (whole / name).read_bytes()


def test_quantisation_is_of_a_runs_identity(base: Path, tmp_path: Path) -> None:
    kinds: list[Quantization | None] = [None, *BOTH]
    assert len({_engine(base, tmp_path, kind).fingerprint for kind in kinds}) == 3
    _trained(base, tmp_path, "nf4")
    with pytest.raises((ConfigurationError, CheckpointError), match="quantization"):
        _trained(base, tmp_path, "int8")


def test_answers_are_the_same_alone_and_in_a_batch(adapter: Path) -> None:
    llm = LoraLLM.from_adapter(adapter, alternatives=0)
    assert llm.quantization == read_card(adapter).quantization is not None
    together = _answers(llm)
    assert together == _answers(LoraLLM.from_adapter(adapter, batch_size=1, alternatives=0))
    assert _quantized(llm._loaded.engine.model), "it is served as it was trained"
    assert len(set(together)) > 1


def test_the_tuned_model_is_served_on_the_unquantised_base_where_asked(adapter: Path, base: Path) -> None:
    dense = LoraLLM.from_adapter(adapter, quantization=None)
    model = dense._loaded.engine.model
    assert not _quantized(model)
    merged = merge_adapter(load_model(resolve(base), dtype=torch.float32), adapter)
    assert all(torch.equal(w, model.state_dict()[name]) for name, w in merged.state_dict().items())


def test_an_export_is_merged_into_the_unquantised_weights(adapter: Path, base: Path, tmp_path: Path) -> None:
    folder = export_adapter(adapter, tmp_path / "merged", dtype="f32")
    merged = merge_adapter(load_model(resolve(base), dtype=torch.float32), adapter).state_dict()
    assert all(torch.equal(w, merged[name]) for name, w in load_file(folder / "model.safetensors").items())
    assert read_card(adapter).quantization is not None
    served = LoraLLM.from_merged(folder)
    assert served.quantization is None
    unquantized = LoraLLM.from_adapter(adapter, quantization=None)
    result = parity(unquantized, exporting.colours(6), {"merged": served})
    assert result.passed
    gate = parity(LoraLLM.from_adapter(adapter), exporting.colours(6), {"merged": served})
    assert gate.forms["merged"].valid == 1


def test_a_base_alone_is_served_quantised(base: Path) -> None:
    llm = LoraLLM(base_model=base, quantization="nf4", max_new_tokens=60)
    assert _quantized(llm._loaded.engine.model)
    assert llm.complete("Describe colour 1.").text


def test_a_folder_of_quantised_weights_is_trained_and_served_as_it_is(
    stored: Path, base: Path, tmp_path: Path
) -> None:
    adapter = _trained(stored, tmp_path / "stored")
    assert read_card(adapter).quantization is None
    llm = LoraLLM.from_adapter(adapter)
    assert _quantized(llm._loaded.engine.model)
    assert _answers(llm) == _answers(LoraLLM.from_adapter(_trained(base, tmp_path / "set", "nf4")))


def test_an_export_from_quantised_weights_is_what_was_trained(stored: Path, tmp_path: Path) -> None:
    adapter = _trained(stored, tmp_path / "run")
    folder = export_adapter(adapter, tmp_path / "merged", dtype="f32")
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    tuned = attach_adapter(load_model(resolve(stored), dtype=torch.float32), adapter).get_base_model().eval()
    merged = load_model(resolve(folder), dtype=torch.float32).eval()
    ids = torch.arange(5, 60)[None]
    with torch.no_grad():
        assert torch.allclose(tuned(ids).logits, merged(ids).logits, atol=1e-4, rtol=1e-4)
    assert parity(
        LoraLLM.from_adapter(adapter), exporting.colours(6), {"merged": LoraLLM.from_merged(folder)}
    )


def test_weights_are_not_quantised_twice(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"is quantised already.*leave quantization out"):
        _trained(stored, tmp_path, "int8")


@pytest.mark.parametrize("quantization", BOTH)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused(
    base: Path, quantization: Quantization, value: float, tmp_path: Path
) -> None:
    tensors = load_file(base / "model.safetensors")
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    tensors[name][3, 5] = value
    for path in base.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigurationError, match=rf"{name} is not finite"):
        load_model(resolve(tmp_path), dtype=torch.float32, quantization=quantization)


@pytest.mark.parametrize("quantization", BOTH)
def test_the_estimate_counts_quantised_weights_as_they_are_held(
    quantization: Quantization, tmp_path: Path
) -> None:
    wide = exporting.config("qwen3")
    wide.hidden_size, wide.intermediate_size, wide.vocab_size = 256, 1024, 300
    AutoModelForCausalLM.from_config(wide).float().save_pretrained(tmp_path / "base")
    base = resolve(tmp_path / "base")
    model = load_model(base, dtype=torch.float32, quantization=quantization)
    held = sum(weight.untyped_storage().nbytes() for weight in model.parameters())
    found = model_shape(base, quantization)
    assert found is not None
    assert found.weights - 4 * 256 * 1024 == pytest.approx(held, rel=0.03), (
        "the largest layer is dense for a time"
    )
    model.save_pretrained(tmp_path / "stored")
    stored = model_shape(resolve(tmp_path / "stored"))
    plain = model_shape(base)
    assert stored is not None
    assert plain is not None
    assert stored.weights == pytest.approx(found.weights, rel=0.05)
    assert stored.adapted == pytest.approx(plain.adapted, rel=0.05)
