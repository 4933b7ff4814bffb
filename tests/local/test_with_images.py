"""A base that also reads images is trained, served and exported as a text model, and stays what it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

from llama_index_finetune_structured import LoraFinetuneEngine, LoraLLM, LoraSettings, export_adapter, parity
from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.local.model.adapter import add_lora, attach_adapter, read_card
from llama_index_finetune_structured.local.model.base_models import (
    BaseModelFiles,
    context_window,
    load_model,
    load_tokenizer,
    resolve,
    vocabulary_size,
)
from llama_index_finetune_structured.local.model.lora_targets import lora_targets
from llama_index_finetune_structured.local.model.prompts import render_prompt
from llama_index_finetune_structured.local.model.quantization import is_quantized_layer
from llama_index_finetune_structured.local.train.loss import AnswerLoss
from llama_index_finetune_structured.local.train.memory import model_shape
from llama_index_finetune_structured.local.train.trainer import Trainer
from tests import exporting, tiny
from tests.local import families

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning"
)  # plain peft's own
IMAGE = "<|image_pad|>"
# As of processors: content is a list of parts.
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|image_pad|>' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SIZES = {"image_size": 28, "patch_size": 14}


def _save(folder: Path, template: str = "chat_template.json") -> Path:
    words = tiny.tokenizer()
    words.add_special_tokens({"additional_special_tokens": [IMAGE]})
    words.chat_template = None
    config = families.config("qwen3_vl")
    config.text_config.vocab_size, config.image_token_id = 264, words.convert_tokens_to_ids(IMAGE)
    families.random_model(config).save_pretrained(folder)
    words.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(SIZES))
    (folder / template).write_text(json.dumps({"chat_template": TEMPLATE}))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save(tmp_path_factory.mktemp("base"))


def _train(base: Path, output: Path) -> Path:
    settings = LoraSettings(rank=4, alpha=8, batch_size=2, epochs=2, learning_rate=2e-2, checkpoint_steps=1)
    engine = LoraFinetuneEngine(exporting.colours(4), base_model=base, output_dir=output, config=settings)
    engine.finetune()
    return engine.adapter


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _train(base, tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("name", ["chat_template.json", "processor_config.json"])
def test_the_processors_template_is_used_and_marks_of_images_in_a_text_are_letters(
    name: str, tmp_path: Path
) -> None:
    folder = _save(tmp_path, name)
    words = load_tokenizer(resolve(folder))
    ids = render_prompt(words, [{"role": "user", "content": f"What is {IMAGE}?"}])
    assert words.decode(ids) == f"<|im_start|>user\nWhat is {IMAGE}?<|im_end|>\n<|im_start|>assistant\n"
    assert words.convert_tokens_to_ids(IMAGE) not in ids
    before = resolve(folder).sha256
    (folder / name).write_text(json.dumps({"chat_template": TEMPLATE + " "}))
    assert resolve(folder).sha256 != before, "the template is of the base's identity"


def test_only_the_text_decoder_is_adapted_and_plain_peft_loads_the_adapter(base: Path, adapter: Path) -> None:
    names = list(load_file(adapter / "adapter_model.safetensors"))
    assert all(name.startswith("base_model.model.model.language_model.layers.") for name in names)
    plain = AutoModelForMultimodalLM.from_pretrained(base, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(plain, adapter).eval()
    own = attach_adapter(load_model(resolve(base), dtype=torch.float32), adapter).eval()
    ids = torch.arange(5, 60)[None]
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, own(input_ids=ids).logits)


def test_a_resumed_run_has_the_bytes_of_an_uninterrupted_one(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Trainer._train_step

    def fail_later(trainer: Trainer, batch: Any) -> dict[str, float]:
        if trainer.step == 3:
            raise OSError("the power went out")
        return own(trainer, batch)

    monkeypatch.setattr(Trainer, "_train_step", fail_later)
    with pytest.raises(OSError, match="power"):
        _train(base, tmp_path)
    monkeypatch.setattr(Trainer, "_train_step", own)
    name = "adapter_model.safetensors"
    assert (_train(base, tmp_path) / name).read_bytes() == (adapter / name).read_bytes()


def test_a_merged_export_is_the_whole_model_again_and_answers_as_the_adapter(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    folder = export_adapter(adapter, tmp_path / "merged", dtype="f32")
    stored, merged = (load_file(path / "model.safetensors") for path in (base, folder))
    assert stored.keys() == merged.keys()
    others = [name for name in stored if "language_model.layers" not in name]
    assert any("visual" in name for name in others)
    assert all(torch.equal(stored[name], merged[name]) for name in others)
    config, own = (json.loads((path / "config.json").read_text()) for path in (folder, base))
    assert config["architectures"] == own["architectures"] == ["Qwen3VLForConditionalGeneration"]
    assert json.loads((folder / "preprocessor_config.json").read_text()) == SIZES
    assert (folder / "chat_template.jinja").read_text() == TEMPLATE
    served = LoraLLM.from_merged(folder, max_new_tokens=60)
    tuned = LoraLLM.from_adapter(adapter, max_new_tokens=60)
    result = parity(tuned, exporting.colours(4), {"merged": served})
    assert (result.passed, result.forms["merged"].valid) == (True, 1)


def test_the_estimate_and_the_context_are_those_of_the_text_model(base: Path, tmp_path: Path) -> None:
    text = families.config("qwen3")
    text.vocab_size = 264
    AutoModelForCausalLM.from_config(text).save_pretrained(tmp_path)
    alone, whole = model_shape(resolve(tmp_path)), model_shape(resolve(base))
    assert alone is not None
    assert whole is not None
    assert alone.weights < whole.weights, "the tower is loaded too"
    names = ("adapted", "layers", "width", "queries", "keys", "inner", "vocabulary", "normed_heads")
    assert [getattr(alone, n) for n in names] == [getattr(whole, n) for n in names]
    assert (context_window(resolve(base)), vocabulary_size(resolve(base))) == (512, 264)


def test_only_the_text_decoder_is_quantised(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model = load_model(resolve(base), dtype=torch.float32, quantization="nf4")
    found = {name for name, layer in model.named_modules() if is_quantized_layer(layer)}
    assert found == set(lora_targets(model).layers) != set()
    model.save_pretrained(tmp_path / "stored")
    tiny.tokenizer().save_pretrained(tmp_path / "stored")
    adapter = _train(tmp_path / "stored", tmp_path / "run")
    assert LoraLLM.from_adapter(adapter, max_new_tokens=20).complete("Describe colour 1.").text
    folder = export_adapter(adapter, tmp_path / "merged", dtype="f32")
    tuned = attach_adapter(load_model(resolve(tmp_path / "stored"), dtype=torch.float32), adapter)
    merged = load_model(resolve(folder), dtype=torch.float32).eval()
    ids = torch.arange(5, 60)[None]
    with torch.no_grad():
        assert torch.allclose(tuned.eval()(input_ids=ids).logits, merged(input_ids=ids).logits, atol=1e-4)
    assert read_card(adapter).quantization is None


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("paligemma", "PaliGemmaForConditionalGeneration cannot be trained: .* its attention is not causal"),
        ("blip-2", "Blip2ForConditionalGeneration cannot be trained on text alone: .*pixel_values"),
    ],
)
def test_what_is_no_decoder_of_text_alone_is_refused_with_the_reason(family: str, reason: str) -> None:
    model = add_lora(families.model(family), rank=2, alpha=4)
    with pytest.raises(ConfigurationError, match=reason):
        AnswerLoss.for_model(model)


def test_an_encoder_with_a_decoder_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "florence2"}))
    with pytest.raises(ConfigurationError, match="florence2 is an encoder with a decoder"):
        load_model(BaseModelFiles("florence", tmp_path, ""), dtype=torch.float32)
