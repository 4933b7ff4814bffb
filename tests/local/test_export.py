"""Exports have, in transformers and in llama.cpp, the logits of the base with its adapter."""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llama_index_finetune_structured.errors import ConfigurationError, EngineError
from llama_index_finetune_structured.llms.llama_cpp import LlamaCppServer
from llama_index_finetune_structured.local.export import FORMATS, export_adapter
from llama_index_finetune_structured.local.model.adapter import merge_adapter
from llama_index_finetune_structured.local.model.base_models import load_model, resolve
from tests import exporting, tiny

TEXT = "<|im_start|>user\nDescribe colour 12, 345:\n\n 6789!  they're Größe\t颜色<|im_end|>\n<|im_start|>assistant\n"
KINDS = {"llama": "smollm", "llama3": "llama-bpe", "qwen2": "qwen2", "qwen3": "gpt-2", "mistral": "llama-bpe"}


class Trained:
    """A base, its adapter, and the logits of both after TEXT."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.folder = folder
        self.base = exporting.save_base(kind, folder / "base", cuts=KINDS[kind])
        self.adapter = exporting.train(self.base, folder / "run").adapter
        self.tokenizer = AutoTokenizer.from_pretrained(self.base)
        self.ids = self.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
        plain = load_model(resolve(self.base), dtype=torch.float32)
        self.base_logits = self.logits(plain)
        self.tuned_logits = self.logits(merge_adapter(plain, self.adapter))

    def logits(self, model: Any) -> torch.Tensor:
        with torch.no_grad():
            return torch.log_softmax(model(torch.tensor([self.ids])).logits[0, -1].double(), -1)


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained("llama", tmp_path_factory.mktemp("llama"))


def _ask(server: LlamaCppServer, path: str, body: dict[str, Any]) -> Any:
    connection = server.connection
    request = urllib.request.Request(
        connection["api_base"].removesuffix("/v1") + path,
        json.dumps(body).encode(),
        {"content-type": "application/json", "authorization": f"Bearer {connection['api_key']}"},
    )
    with urllib.request.urlopen(request) as response:
        return json.loads(response.read())


def _llama_cpp_logits(server: LlamaCppServer, ids: list[int]) -> dict[int, float]:
    body = {"prompt": ids, "n_predict": 1, "n_probs": 50, "temperature": 0}
    (first,) = _ask(server, "/completion", body)["completion_probabilities"]
    return {choice["id"]: choice["logprob"] for choice in first["top_logprobs"]}


def _same(found: dict[int, float], expected: torch.Tensor) -> None:
    assert len(found) == 50
    worst = max(abs(value - float(expected[token])) for token, value in found.items())
    assert worst < 0.02, f"log-probabilities are off by {worst}"


def test_llama_cpp_reads_text_and_gives_logits_as_the_tuned_model_does(trained: Trained) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed (extra llamacpp)")
    merged = export_adapter(trained.adapter, trained.folder / "merged.gguf", format="gguf", dtype="f32")
    lora = export_adapter(trained.adapter, trained.folder / "lora.gguf", format="gguf-adapter")
    base = export_adapter(trained.adapter, trained.folder / "base.gguf", format="gguf-base", dtype="f32")
    assert (trained.base_logits - trained.tuned_logits).abs().max() > 0.5
    with LlamaCppServer(merged, threads=1) as server:
        assert _ask(server, "/tokenize", {"content": TEXT})["tokens"] == trained.ids
        _same(_llama_cpp_logits(server, trained.ids), trained.tuned_logits)
    with LlamaCppServer(base, threads=1) as server:
        _same(_llama_cpp_logits(server, trained.ids), trained.base_logits)
    with LlamaCppServer(base, lora=lora, threads=1) as server:
        _same(_llama_cpp_logits(server, trained.ids), trained.tuned_logits)


@pytest.mark.parametrize(("dtype", "tolerance"), [("f32", 1e-4), ("bf16", 0.5), ("f16", 0.1)])
def test_plain_transformers_loads_the_merged_folder_with_its_chat_template(
    llama: Trained, tmp_path: Path, dtype: str, tolerance: float
) -> None:
    folder = export_adapter(llama.adapter, tmp_path / "merged", dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert (
        str(model.dtype) == {"f32": "torch.float32", "bf16": "torch.bfloat16", "f16": "torch.float16"}[dtype]
    )
    assert (llama.logits(model.float()) - llama.tuned_logits).abs().max() < tolerance
    words = AutoTokenizer.from_pretrained(folder)
    assert words.chat_template == tiny.TEMPLATE
    assert words(TEXT, add_special_tokens=False)["input_ids"] == llama.ids
    assert not list(tmp_path.glob(".unfinished*"))


@pytest.mark.parametrize("dtype", FORMATS["gguf"])
def test_every_gguf_type_holds_the_tuned_weights(llama: Trained, tmp_path: Path, dtype: str) -> None:
    import gguf

    path = export_adapter(llama.adapter, tmp_path / "m.gguf", format="gguf", dtype=dtype)
    exact = export_adapter(llama.adapter, tmp_path / "f32.gguf", format="gguf", dtype="f32")
    kept = {t.name: t for t in gguf.GGUFReader(exact).tensors}
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(-1)
        expected = kept[tensor.name].data.reshape(-1)
        assert abs(values - expected).max() <= 0.01 * abs(expected).max(), tensor.name
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}
    assert kinds["blk.0.attn_q.weight"] == dtype.upper()
    assert kinds["output_norm.weight"] == "F32"


def test_an_output_that_exists_is_never_overwritten(llama: Trained, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for format in FORMATS:
        with pytest.raises(ConfigurationError, match="exists already"):
            export_adapter(llama.adapter, taken, format=format)
    assert taken.read_text() == "mine"


def test_a_full_disk_leaves_nothing_half_written(
    llama: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gguf.GGUFWriter.write_tensor_data", refuse)
    with pytest.raises(EngineError, match=r"could not be written .*No space left"):
        export_adapter(llama.adapter, tmp_path / "m.gguf", format="gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", FORMATS)
def test_an_output_whose_name_cannot_be_written_as_text_is_a_clear_error(
    format: str, llama: Trained, tmp_path: Path
) -> None:
    target = tmp_path / os.fsdecode(b"x\xe9.gguf")
    with pytest.raises(EngineError, match="could not be written"):
        export_adapter(llama.adapter, target, format=format)
    assert list(tmp_path.iterdir()) == []


def test_an_architecture_that_gguf_export_does_not_know_is_refused_by_name(tmp_path: Path) -> None:
    adapter = exporting.train(tiny.save("gpt2", tmp_path / "base"), tmp_path / "run").adapter
    for format in ("gguf", "gguf-adapter"):
        with pytest.raises(ConfigurationError, match=r"GPT2LMHeadModel.*Export as 'merged'"):
            export_adapter(adapter, tmp_path / "out.gguf", format=format)
    assert export_adapter(adapter, tmp_path / "merged").is_dir()


def test_a_tokenizer_that_gguf_export_does_not_know_is_refused(tmp_path: Path) -> None:
    base = exporting.save_base("llama", tmp_path / "base")
    file = base / "tokenizer.json"
    content = json.loads(file.read_text())
    content["pre_tokenizer"] = {"type": "Whitespace"}
    file.write_text(json.dumps(content))
    adapter = exporting.train(base, tmp_path / "run").adapter
    with pytest.raises(ConfigurationError, match="byte-level BPE tokenizers of GPT-2, SmolLM2"):
        export_adapter(adapter, tmp_path / "out.gguf", format="gguf")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "onnx"}, "expected one of merged, gguf"),
        ({"dtype": "q4_k"}, "expected one of bf16, f16, f32 for merged"),
    ],
)
def test_unknown_formats_and_types_name_the_known_ones(
    llama: Trained, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        export_adapter(llama.adapter, tmp_path / "out", **options)


def test_an_adapter_is_not_exported_onto_another_base(llama: Trained, tmp_path: Path) -> None:
    other = tiny.save("llama", tmp_path / "other", seed=3)
    with pytest.raises(ConfigurationError, match="was trained on"):
        export_adapter(llama.adapter, tmp_path / "out", base_model=other)


def test_a_missing_gguf_file_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such GGUF file"):
        LlamaCppServer(tmp_path / "none.gguf")
