"""Without the extra ``quantized``, what needs it says so; all else works."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama_index_finetune_structured import LoraFinetuneEngine, LoraLLM, LoraSettings
from llama_index_finetune_structured.errors import MissingDependencyError
from llama_index_finetune_structured.local.model import quantization
from tests import exporting

INSTALL = r"needs the package 'bitsandbytes'.*\[quantized\]"


@pytest.fixture(autouse=True)
def _without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda _: None)


def test_a_quantised_run_names_the_extra(tiny_llama: Path, tmp_path: Path) -> None:
    config = LoraSettings(quantization="nf4")
    engine = LoraFinetuneEngine(
        exporting.colours(), base_model=tiny_llama, output_dir=tmp_path, config=config
    )
    with pytest.raises(MissingDependencyError, match=INSTALL):
        engine.finetune()


def test_a_quantised_llm_names_the_extra(tiny_llama: Path) -> None:
    with pytest.raises(MissingDependencyError, match=INSTALL):
        LoraLLM(base_model=tiny_llama, quantization="int8").complete("Hello")


def test_a_folder_of_quantised_weights_names_the_extra(tiny_llama: Path, tmp_path: Path) -> None:
    for path in tiny_llama.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    stored = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": stored}))
    with pytest.raises(MissingDependencyError, match=INSTALL):
        LoraLLM(base_model=tmp_path).complete("Hello")


def test_an_unquantised_base_needs_nothing(tiny_llama: Path) -> None:
    assert LoraLLM(base_model=tiny_llama, max_new_tokens=2).complete("Hello") is not None
