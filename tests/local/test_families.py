"""Of every family of decoders, all linear layers are adapted, and training, serving and export agree."""

from __future__ import annotations

import copy
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.local.generate.engine import GenerationEngine
from llama_index_finetune_structured.local.generate.request import GenerationRequest
from llama_index_finetune_structured.local.model.adapter import add_lora, merge_adapter
from llama_index_finetune_structured.local.model.base_models import (
    DEFAULT_BASE_MODEL,
    BaseModelFiles,
    load_model,
    resolve,
)
from llama_index_finetune_structured.local.model.lora_targets import lora_targets, text_blocks
from llama_index_finetune_structured.local.model.prompts import TokenRow
from llama_index_finetune_structured.local.train.fused_linear import fuse_lora
from llama_index_finetune_structured.local.train.loss import AnswerLoss
from tests import tiny
from tests.local import families

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # plain peft's own
    pytest.mark.filterwarnings("ignore:.*MoE|.*experts:UserWarning"),
]

PACKED = """
llama qwen2 qwen3 mistral phi3 gemma2 gemma3_text gemma3n_text gemma4_text olmo2 gpt2 granite smollm3
mixtral qwen3_moe deepseek_v3
"""
ROW_BY_ROW = "lfm2 granitemoehybrid bloom mamba2 llama4_text"
# Of these the text decoder is trained, and the rest stays as it is.
WITH_IMAGES = "gemma3 llava qwen3_vl"
WITH_IMAGES_ROW_BY_ROW = "qwen3_5"
MORE_WITH_IMAGES = """
aria aya_vision cohere2_vision deepseek_vl exaone4_5 gemma4 gemma4_unified glm46v glm4v glm4v_moe glm_ocr glmasr
got_ocr2 idefics2 idefics3 internvl kimi_k25 lighton_ocr llava_next llava_next_video llava_onevision mistral3 mllama
qianfan_ocr qwen2_5_vl qwen2_audio qwen2_vl qwen3_asr qwen3_vl_moe smolvlm video_llama_3 vipllava voxtral
"""
MORE_WITH_IMAGES_ROW_BY_ROW = "lfm2_vl lfm3_vl qwen3_5_moe"
MORE_PACKED = """
afmoe apertus arcee aria_text biogpt bitnet codegen cohere cohere2 cohere2_moe ctrl cwm deepseek_v2 diffllama dots1
ernie4_5 ernie4_5_moe exaone exaone4 exaone_moe flex_olmo gemma glm glm4 glm4_moe glm4_moe_lite gpt_bigcode gpt_neox
gptj granitemoe granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe hy_v3 hyperclovax internlm3 iquestcoder
jais2 jetmoe kolibri1 laguna mellum minicpm3 minimax_m2 ministral ministral3 nanochat olmo olmo3 olmoe opt persimmon
phi phimoe qwen2_moe sarvam_moe seed_oss solar_open starcoder2 vaultgemma youtu
"""
MORE_ROW_BY_ROW = """
bamba doge falcon falcon_h1 falcon_mamba gpt_neo gpt_neox_japanese gpt_oss jamba lfm2_moe mamba minimax mpt nemotron
nemotron_h olmo_hybrid qwen3_5_moe_text qwen3_5_text qwen3_next recurrent_gemma stablelm xglm
"""
REFUSED = "hrm_text"
# What decides between experts, what peft or fused kernels read past LoRA, and what is no linear layer.
_LEFT = re.compile(
    r"\.router|\.gate\.weight$|\.wg\.|e_score|shared_expert_gate|conv1d|conv_1d|conv\.conv|A_log|mixer\.out_proj|mamba\.(out|dt)_proj"
    r"|mixer\.(x|dt)_proj|rg_lru|experts\..*_bias$"
)
_SHARED = tuple(n % 250 + 3 for n in range(0, 500, 17))
ROWS = [
    TokenRow((*_SHARED, 5, 6, 7, 8), (20, 21, 22)),
    TokenRow((*_SHARED, 5, 6, 9), (23, 24, *range(30, 50))),
    TokenRow(_SHARED[:20], (25, 26)),
]


def _tuned(base: BaseModelFiles) -> Any:
    torch.manual_seed(1)
    tuned = add_lora(load_model(base, dtype=torch.float32), rank=2, alpha=4)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return tuned.eval()


def _gradient(model: Any) -> torch.Tensor:
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


def _expected(model: Any) -> tuple[float, torch.Tensor]:
    """Loss and gradient of the rows, each run by itself."""
    model.get_base_model().set_attn_implementation("eager")
    total = torch.zeros(())
    for row in ROWS:
        ids = torch.tensor([[*row.prompt, *row.answer]])
        logits = model(input_ids=ids, use_cache=False).logits[0, len(row.prompt) - 1 : -1]
        total = total + cross_entropy(logits, torch.tensor(row.answer), reduction="sum")
    loss = total / sum(len(row.answer) for row in ROWS)
    loss.backward()
    return float(loss.detach()), _gradient(model)


def _require_others_unchanged(folder: Path, adapted: int) -> None:
    """The stored weights of a merged model are the base's own but those adapted, all in one list of blocks."""
    stored, merged = (load_file(folder / name / "model.safetensors") for name in ("base", "merged"))
    assert {name: weight.shape for name, weight in stored.items()} == {n: w.shape for n, w in merged.items()}
    changed = [name for name, weight in stored.items() if not torch.equal(weight, merged[name])]
    assert len(changed) >= adapted  # stacked experts can be stored apart
    assert len({re.split(r"\.\d+\.", name)[0] for name in changed}) == 1


def _check(family: str, folder: Path, *, packed: bool) -> None:
    base = BaseModelFiles(family, families.save(family, folder / "base"), "")
    plain = load_model(base, dtype=torch.float32)
    names = set(lora_targets(plain).names)
    prefix, _ = text_blocks(plain)
    matrices = {
        name
        for name, weight in plain.named_parameters()
        if name.startswith(f"{prefix}.") and weight.dim() > 1
    }
    adapted = {name if name in matrices else f"{name}.weight" for name in names}
    assert adapted <= matrices
    assert [name for name in matrices - adapted if not _LEFT.search(name)] == []

    tuned = _tuned(base)
    tuned.save_pretrained(folder / "adapter", save_embedding_layers=False)
    apart = copy.deepcopy(tuned)
    fuse_lora(tuned)
    loss = AnswerLoss.for_model(tuned)
    assert loss.packed == packed
    value = float(loss.backward(ROWS))
    expected, gradient = _expected(apart)
    assert value == pytest.approx(expected, rel=1e-4)
    assert float((_gradient(tuned) - gradient).norm() / gradient.norm()) < 1e-3

    merged = merge_adapter(plain, folder / "adapter").eval()
    with torch.no_grad():
        ids = torch.tensor([[*_SHARED]])
        logits = merged(input_ids=ids, use_cache=False).logits
        assert torch.allclose(logits, apart(input_ids=ids, use_cache=False).logits, atol=1e-3, rtol=1e-3)
    merged.save_pretrained(folder / "merged")
    _require_others_unchanged(folder, len(names))
    again = load_model(BaseModelFiles("merged", folder / "merged", ""), dtype=torch.float32).eval()
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in merged.state_dict().items())

    answers = [families.plainly(merged, row.prompt, 12) for row in ROWS]
    engine = GenerationEngine(again, stop_ids=[1], pad_id=1, batch_size=4)
    futures = [engine.submit(GenerationRequest(row.prompt, 12)) for row in ROWS]
    assert [list(future.result().tokens) for future in futures] == answers


@pytest.mark.parametrize("family", [*PACKED.split(), *WITH_IMAGES.split()])
def test_training_packed_serving_and_export_agree(family: str, tmp_path: Path) -> None:
    _check(family, tmp_path, packed=True)


@pytest.mark.parametrize("family", [*ROW_BY_ROW.split(), *WITH_IMAGES_ROW_BY_ROW.split()])
def test_training_row_by_row_serving_and_export_agree(family: str, tmp_path: Path) -> None:
    _check(family, tmp_path, packed=False)


@pytest.mark.slow
@pytest.mark.parametrize("family", [*MORE_PACKED.split(), *MORE_WITH_IMAGES.split()])
def test_of_more_families_training_packed_serving_and_export_agree(family: str, tmp_path: Path) -> None:
    _check(family, tmp_path, packed=True)


@pytest.mark.slow
@pytest.mark.parametrize("family", [*MORE_ROW_BY_ROW.split(), *MORE_WITH_IMAGES_ROW_BY_ROW.split()])
def test_of_more_families_training_row_by_row_serving_and_export_agree(family: str, tmp_path: Path) -> None:
    _check(family, tmp_path, packed=False)


def test_the_documentation_names_the_families_that_are_tested_and_those_that_are_refused() -> None:
    page = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
    lines = page.partition("## Which models")[2].partition("## Several processes")[0].splitlines()

    def named(start: str) -> list[str]:
        (line,) = [line for line in lines if line.startswith(f"| {start}")]
        return re.findall("`([^`]+)`", line)

    assert named("packed") == sorted(f"{PACKED} {MORE_PACKED}".split())
    assert named("text alone, packed") == sorted(f"{WITH_IMAGES} {MORE_WITH_IMAGES}".split())
    rows = f"{WITH_IMAGES_ROW_BY_ROW} {MORE_WITH_IMAGES_ROW_BY_ROW}"
    assert named("text alone, row by row") == sorted(rows.split())
    assert named("row by row") == sorted(f"{ROW_BY_ROW} {MORE_ROW_BY_ROW}".split())
    assert named("`hrm_text`") == REFUSED.split()


@pytest.mark.parametrize("family", REFUSED.split())
def test_families_with_other_lists_of_blocks_are_refused(family: str) -> None:
    with pytest.raises(ConfigurationError, match=r"has no list of \d+ blocks. Use another base model"):
        add_lora(families.model(family), rank=2, alpha=4)


def test_a_base_without_a_list_of_blocks_is_refused_by_name() -> None:
    model = families.model("llama")
    model.config.num_hidden_layers = 5
    with pytest.raises(ConfigurationError, match="LlamaForCausalLM has no list of 5 blocks"):
        add_lora(model, rank=2, alpha=4)


def test_of_the_embedded_base_the_layers_of_always_are_adapted() -> None:
    model = load_model(resolve(DEFAULT_BASE_MODEL), dtype=torch.float32)
    targets = lora_targets(model)
    assert targets.modules == ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    assert (len(targets.names), targets.parameters, targets.share) == (30 * 7, (), 1.0)


def test_towers_that_read_images_are_not_adapted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    tuned = add_lora(tiny.model("gemma3"), rank=2, alpha=4)
    adapted = [name for name, _ in tuned.named_parameters() if "lora_A" in name]
    assert len(adapted) == 14
    assert all(".language_model.layers." in name for name in adapted)
    assert "LoRA adapts 14 matrices, which have 100.0% of the weights of their blocks" in caplog.text


@pytest.mark.parametrize("family", ["qwen2_moe", "granitemoehybrid"])
def test_of_the_uppermost_blocks_alone_experts_are_adapted_too(family: str, tmp_path: Path) -> None:
    base = BaseModelFiles(family, families.save(family, tmp_path / "base"), "")
    tuned = add_lora(load_model(base, dtype=torch.float32), rank=2, alpha=4, upper_layers=1)
    names = [name for name, _ in tuned.named_parameters() if "lora_B" in name]
    assert any("experts" in name for name in names)
    assert all(".layers.1." in name for name in names)
    tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    merge_adapter(load_model(base, dtype=torch.float32), tmp_path / "adapter")


@pytest.mark.parametrize(
    "family", ["mixtral", "qwen2_moe", "gemma3_text", "gemma3", "qwen2_vl", "qwen3_vl_moe"]
)
def test_peft_itself_loads_the_adapter_with_the_same_logits(family: str, tmp_path: Path) -> None:
    base = BaseModelFiles(family, families.save(family, tmp_path / "base"), "")
    tuned = _tuned(base)
    tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    loaded = PeftModel.from_pretrained(load_model(base, dtype=torch.float32), tmp_path / "adapter").eval()
    ids = torch.tensor([[*_SHARED]])
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, tuned(input_ids=ids).logits)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_experts_in_bf16_have_fp32_gradients_under_checkpointing_too(family: str) -> None:
    model = add_lora(families.model(family).bfloat16(), rank=2, alpha=4)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(0))
    fuse_lora(model)
    loss = AnswerLoss.for_model(model)
    loss.backward(ROWS)
    plain = _gradient(model)
    assert plain.dtype == torch.float32
    model.zero_grad()
    for block in text_blocks(model.get_base_model())[1]:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    loss.backward(ROWS)
    assert torch.equal(_gradient(model), plain)
