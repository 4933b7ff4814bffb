"""Adapters are loaded from other working folders and processes, over bases of many kinds; waits for a file end."""

from __future__ import annotations

import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load, save_file

from llama_index_finetune_structured import LoraLLM
from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.llms.llama_cpp import LlamaCppServer
from llama_index_finetune_structured.local.export.serving import serving_commands
from llama_index_finetune_structured.local.model.adapter import (
    CARD,
    add_lora,
    merge_adapter,
    read_card,
    write_card,
)
from llama_index_finetune_structured.local.model.base_files import file_hash
from llama_index_finetune_structured.local.model.base_models import BaseModelFiles, load_model
from llama_index_finetune_structured.local.model.lora_files import ADAPTER_CONFIG, WEIGHTS
from tests import exporting, tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and the adapter that was trained on it."""
    folder = tmp_path_factory.mktemp("trained")
    exporting.train(tiny.save("llama", folder / "base"), folder / "run")
    return folder


def test_paths_are_those_of_the_working_folder_in_which_the_llm_was_made(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").symlink_to(trained / "base")
    (tmp_path / "adapter").symlink_to(trained / "run" / "adapter")
    made = [
        LoraLLM.from_adapter("adapter", base_model=Path("base")),
        LoraLLM(adapter="adapter", base_model="base"),
    ]
    copies = [pickle.loads(pickle.dumps(llm)) for llm in made]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "adapter").mkdir()
    expected = LoraLLM.from_adapter(trained / "run")._loaded
    assert all(llm._loaded is expected for llm in (*made, *copies))


def test_an_adapter_that_another_training_replaced_before_the_first_call_is_refused(
    trained: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(trained / "run" / "adapter", adapter)
    llm = LoraLLM.from_adapter(adapter)
    card = read_card(adapter)
    weights = {name: weight * 2 for name, weight in load((adapter / WEIGHTS).read_bytes()).items()}
    save_file(weights, adapter / WEIGHTS)
    write_card(adapter, card, {name: file_hash(adapter / name) for name in (WEIGHTS, ADAPTER_CONFIG)})
    with pytest.raises(ConfigurationError, match="is another adapter than when this LoraLLM was made"):
        llm.complete("Describe colour 1.")
    LoraLLM.from_adapter(adapter).complete("Describe colour 1.", max_new_tokens=2)


@pytest.mark.parametrize("name", [WEIGHTS, ADAPTER_CONFIG, CARD])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_device_in_an_adapter_s_folder_is_an_error_and_no_wait(
    kind: str, name: str, trained: Path, tmp_path: Path
) -> None:
    adapter = Path(shutil.copytree(trained / "run" / "adapter", tmp_path / "adapter"))
    (adapter / name).unlink()
    if kind == "pipe":
        os.mkfifo(adapter / name)
    else:
        (adapter / name).symlink_to("/dev/zero")
    with pytest.raises(ConfigurationError, match=re.escape(name)):
        LoraLLM.from_adapter(adapter)


@pytest.mark.parametrize("upper", [None, 1])
def test_an_adapter_of_a_base_whose_layers_are_derived_classes_is_loaded(
    upper: int | None, tmp_path: Path
) -> None:
    size: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 258,
    }
    transformers.AutoModelForCausalLM.from_config(transformers.FalconConfig(**size)).save_pretrained(tmp_path)
    base = BaseModelFiles("falcon", tmp_path, "")
    tuned = add_lora(load_model(base, dtype=torch.float32), rank=4, alpha=8, upper_layers=upper)
    assert sum(name.endswith("lora_A.default.weight") for name, _ in tuned.named_parameters()) == 4 * (
        upper or 2
    )
    tuned.save_pretrained(tmp_path / "adapter")
    merge_adapter(load_model(base, dtype=torch.float32), tmp_path / "adapter")


@pytest.mark.parametrize("use", [serving_commands, LlamaCppServer, LoraLLM.from_adapter, LoraLLM.from_merged])
def test_a_path_that_the_system_does_not_take_is_a_clear_error(use: Any) -> None:
    with pytest.raises(ConfigurationError):
        use("x" * 5000)
