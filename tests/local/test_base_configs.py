"""What a base's config says: the context window wherever it stands, and a vocabulary that the tokenizer fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.local.model.base_models import (
    BaseModelFiles,
    context_window,
    load_tokenizer,
    resolve,
)
from tests import tiny


def _base(folder: Path, config: dict[str, Any]) -> BaseModelFiles:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return BaseModelFiles("tiny", folder, "")


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({"model_type": "llama", "max_position_embeddings": 4096}, 4096),
        ({"model_type": "gpt2", "n_positions": 512}, 512),
        ({"model_type": "mpt", "max_seq_len": 777}, 777),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, 131072),
        ({"model_type": "gemma3_text"}, 131072),
        (
            {
                "model_type": "gemma3",
                "max_position_embeddings": 9,
                "text_config": {"max_position_embeddings": 99},
            },
            99,
        ),
        ({"model_type": "bloom"}, 2048),
        ({"model_type": "qwen2_vl", "max_position_embeddings": 999, "vision_config": {"depth": 2}}, 999),
        (
            {"model_type": "llava", "text_config": {"model_type": "llama", "max_position_embeddings": 4096}},
            4096,
        ),
        (
            {
                "model_type": "qwen2_5_omni",
                "max_position_embeddings": 9,
                "thinker_config": {"text_config": {"max_position_embeddings": 99}},
            },
            99,
        ),
    ],
    ids=lambda value: value.get("model_type") if isinstance(value, dict) else "",
)
def test_the_context_window_is_found_where_the_config_states_it_or_its_class(
    tmp_path: Path, config: dict[str, Any], window: int
) -> None:
    assert context_window(_base(tmp_path, config)) == window


@pytest.mark.parametrize("config", [{"model_type": "no such model"}, {}])
def test_a_config_that_transformers_does_not_know_is_a_clear_error(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError, match="config does not load"):
        context_window(_base(tmp_path, config))


@pytest.mark.parametrize("kind", ["Gemma3nText", "Qwen2Moe", "Doge", "Llama", "GPT2"])
def test_the_numbers_of_real_configs_are_no_damage(kind: str, tmp_path: Path) -> None:
    config = getattr(transformers, f"{kind}Config")()
    config.save_pretrained(tmp_path)
    sizes = {"shared_expert_intermediate_size": 20480, "vocab_size_per_layer_input": 262144}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **sizes}), encoding="utf-8")
    assert context_window(BaseModelFiles("real", tmp_path, "")) > 1000


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "num_experts", "n_routed_experts"])
def test_a_config_that_asks_for_endless_layers_or_experts_is_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"{key} is 1000000"):
        context_window(_base(tmp_path, {"model_type": "llama", key: 1_000_000}))


def test_a_tower_of_endless_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="depth is 1000000"):
        context_window(_base(tmp_path, {"model_type": "qwen2_vl", "vision_config": {"depth": 1_000_000}}))


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody-has-this-name/x", "a\0b"])
def test_a_name_that_is_no_path_is_a_clear_error(name: str) -> None:
    with pytest.raises(ConfigurationError, match="base model"):
        resolve(name)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused_with_both_numbers(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(tmp_path)
    for config in (tiny.config("llama"), tiny.config("gemma3")):
        config.save_pretrained(tmp_path)
        with pytest.raises(
            ConfigurationError, match=r"ids up to 258 and the model 258 tokens.*embeddings\(259\)"
        ):
            load_tokenizer(BaseModelFiles("tiny", tmp_path, ""))


def test_a_special_token_that_no_prompt_holds_needs_no_embedding(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    tokenizer.save_pretrained(tmp_path)
    tiny.config("llama").save_pretrained(tmp_path)
    assert len(load_tokenizer(BaseModelFiles("tiny", tmp_path, ""))) == 259
    tokenizer.chat_template = tiny.TEMPLATE + "{{ '<image_soft_token>' }}"
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="258"):
        load_tokenizer(BaseModelFiles("tiny", tmp_path, ""))
