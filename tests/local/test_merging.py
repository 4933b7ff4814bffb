"""An adapter is merged in the precision that is served, with no copy of the base in another one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llama_index_finetune_structured.local.model.adapter import add_lora, merge_adapter
from llama_index_finetune_structured.local.model.base_models import BaseModelFiles, load_model
from tests.local import families
from tests.local.allocations import Allocations


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
def test_sums_in_bf16_are_those_of_fp32_rounded_once(family: str, tmp_path: Path) -> None:
    families.model(family).bfloat16().save_pretrained(tmp_path / "base")
    base = BaseModelFiles(family, tmp_path / "base", "")
    tuned = add_lora(load_model(base, dtype=torch.float32), rank=2, alpha=4)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.01)
    tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    expected = merge_adapter(load_model(base, dtype=torch.float32), tmp_path / "adapter").bfloat16()
    found = merge_adapter(load_model(base, dtype=torch.bfloat16), tmp_path / "adapter")
    for name, weight in expected.state_dict().items():
        other = found.state_dict()[name]
        if "experts" in name:  # their updates are rounded before they are added
            rounding = 2**-8 * float(weight.abs().max())  # a sum near zero is of larger numbers
            assert torch.allclose(weight, other, rtol=2**-7, atol=rounding), name
        else:
            assert torch.equal(weight, other), name


def test_merging_holds_one_layers_sum_beside_the_weights(tmp_path: Path) -> None:
    families.model("llama").save_pretrained(tmp_path / "base")
    base = BaseModelFiles("llama", tmp_path / "base", "")
    tuned = add_lora(load_model(base, dtype=torch.float32), rank=1, alpha=4)
    tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    model = load_model(base, dtype=torch.bfloat16)
    weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
    largest = max(weight.numel() for name, weight in model.named_parameters() if "layers" in name)
    lora = sum(weight.numel() for weight in tuned.parameters() if weight.requires_grad)
    with Allocations(weights) as allocations:
        merge_adapter(model, tmp_path / "adapter")
    assert allocations.peak < 4 * (4 * largest + 3 * lora)
