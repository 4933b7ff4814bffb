"""Exports hold finite weights only: what is not, or would not be in the type asked for, is refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import numpy
import pytest
import torch
from safetensors.torch import load, save_file

from llama_index_finetune_structured import LoraLLM
from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.local.export import export_adapter
from llama_index_finetune_structured.local.export.gguf_adapter import save_adapter_gguf
from llama_index_finetune_structured.local.export.gguf_model import TYPES, _cast, save_gguf
from llama_index_finetune_structured.local.export.merged import merged_model, save_merged
from llama_index_finetune_structured.local.model.adapter import read_card
from llama_index_finetune_structured.local.model.base_models import BaseModelFiles, resolve
from llama_index_finetune_structured.local.model.lora_files import WEIGHTS
from tests import exporting

NOT_FINITE = [float("nan"), float("inf"), -float("inf")]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    return exporting.train(exporting.save_base("llama", folder / "base"), folder / "run").adapter


def _changed(adapter: Path, to: Path, value: float, part: str) -> tuple[Path, str]:
    """A copy of the adapter with one value set in its first weight of ``part``, and that weight's name."""
    shutil.copytree(adapter, to)
    weights = load((adapter / WEIGHTS).read_bytes())
    name = sorted(key for key in weights if part in key)[0]
    weights[name][0, 0] = value
    save_file(weights, to / WEIGHTS, {"format": "pt"})
    return to, name


def _overflowing(adapter: Path, to: Path, factor: float) -> Path:
    """A copy of the adapter with finite weights, of which one merged weight is about ``factor`` squared."""
    changed, name = _changed(adapter, to, factor, "lora_A")
    weights = load((changed / WEIGHTS).read_bytes())
    weights[name.replace("lora_A", "lora_B")][:, 0] = factor
    save_file(weights, changed / WEIGHTS, {"format": "pt"})
    return changed


def _base(adapter: Path) -> BaseModelFiles:
    return resolve(read_card(adapter).base_model)


@pytest.mark.parametrize("value", NOT_FINITE)
def test_an_adapter_that_is_not_finite_is_neither_exported_nor_served(
    adapter: Path, tmp_path: Path, value: float
) -> None:
    changed, name = _changed(adapter, tmp_path / "changed", value, "lora_A")
    for format in ("merged", "gguf", "gguf-adapter"):
        with pytest.raises(ConfigurationError):
            export_adapter(changed, tmp_path / "out", format=format)
        assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigurationError):
        LoraLLM.from_adapter(changed).complete("x")
    module = name.removesuffix(".weight")
    with pytest.raises(ConfigurationError, match=rf"adapter .*changed: the weight {module}.* is not finite"):
        merged_model(_base(adapter), changed)
    with pytest.raises(ConfigurationError, match=rf"adapter .*changed: the weight {name} is not finite"):
        save_adapter_gguf(changed, _base(adapter), tmp_path / "out", "f32")
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_overflows_when_it_is_merged_is_refused(adapter: Path, tmp_path: Path) -> None:
    changed = _overflowing(adapter, tmp_path / "a", 3e38)
    with pytest.raises(
        ConfigurationError, match=r"adapter .*, merged into its base: the weight .* not finite"
    ):
        merged_model(_base(adapter), changed)


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("dtype", TYPES)
def test_no_gguf_type_takes_a_weight_that_is_not_finite(dtype: str, value: float) -> None:
    weight = torch.ones(2, 32)
    weight[1, 7] = value
    with pytest.raises(ConfigurationError, match="blk is not finite"):
        _cast("blk", weight, TYPES[dtype][0])


@pytest.mark.parametrize(
    ("dtype", "fits", "overflows"),
    [("f16", 65504.0, 65600.0), ("q8_0", 65504.0 * 127, 65600.0 * 127), ("bf16", 3.38e38, 3.4e38)],
)
def test_a_weight_that_overflows_in_a_gguf_type_is_refused_and_the_largest_that_fits_is_kept(
    dtype: str, fits: float, overflows: float
) -> None:
    kind = TYPES[dtype][0]
    kept = gguf.quants.dequantize(_cast("blk", torch.full((2, 32), fits), kind), kind)
    assert numpy.isfinite(kept).all()
    assert abs(kept - fits).max() <= 0.01 * fits
    with pytest.raises(ConfigurationError, match=f"blk does not fit into {dtype}: export as"):
        _cast("blk", torch.full((2, 32), -overflows), kind)


def test_a_merged_weight_that_overflows_in_half_precision_is_refused_by_name(
    adapter: Path, tmp_path: Path
) -> None:
    base, card = _base(adapter), read_card(adapter)
    model = merged_model(base, _overflowing(adapter, tmp_path / "a", 1e4))
    for save in (
        lambda: save_gguf(model, base, tmp_path / "out", "f16"),
        lambda: save_merged(model, base, card, tmp_path / "out", "f16"),
    ):
        with pytest.raises(ConfigurationError, match=r"does not fit into f16: export as bf16 or f32"):
            save()
        assert not (tmp_path / "out").exists()
