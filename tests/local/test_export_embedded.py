"""The embedded SmolLM2, a few steps trained, gives the same answers in every form it is exported to."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_index_finetune_structured import (
    FinetuneDataset,
    LlamaCppServer,
    LoraFinetuneEngine,
    LoraLLM,
    LoraSettings,
    export_adapter,
    parity,
    served_llm,
)
from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.local.model.base_models import (
    DEFAULT_BASE_MODEL,
    gguf_source,
    load_tokenizer,
    resolve,
)
from tests.exporting import Colour
from tests.local.test_export import TEXT, _ask

pytestmark = pytest.mark.slow
_THINGS = ["lake", "door", "coat", "leaf", "wall"]
_COLOURS = ["red", "blue", "orange", "green", "yellow", "violet", "brown", "teal"]


def _rows(things: list[str]) -> FinetuneDataset:
    pairs = [
        (f"The {thing} is {colour}. Which colour?", Colour(name=colour, warm=n % 2 == 0))
        for thing in things
        for n, colour in enumerate(_COLOURS)
    ]
    return FinetuneDataset.from_pairs(pairs, output_cls=Colour, system_prompt="You know colours.")


def test_the_embedded_model_answers_alike_in_every_form(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed (extra llamacpp)")
    try:
        base = resolve(DEFAULT_BASE_MODEL)
    except ConfigurationError as error:
        pytest.skip(str(error))
    engine = LoraFinetuneEngine(
        _rows(_THINGS[:4]),
        output_dir=tmp_path / "run",
        config=LoraSettings(batch_size=8, epochs=1, learning_rate=2e-3),
    )
    engine.finetune()
    adapter = engine.adapter
    merged = export_adapter(adapter, tmp_path / "merged", dtype="f32")
    half = export_adapter(adapter, tmp_path / "half.gguf", format="gguf", dtype="f16")
    eight = export_adapter(adapter, tmp_path / "eight.gguf", format="gguf")
    lora = export_adapter(adapter, tmp_path / "lora.gguf", format="gguf-adapter")
    source = gguf_source(base)
    assert source is not None
    with (
        LlamaCppServer(half, context=1024, threads=1) as f16,
        LlamaCppServer(eight, context=1024, threads=1) as q8,
        LlamaCppServer(source, lora=lora, context=1024, threads=1) as on_base,
    ):
        ids = load_tokenizer(base)(TEXT + "x\n\n 12 naïve", add_special_tokens=False)["input_ids"]
        assert _ask(f16, "/tokenize", {"content": TEXT + "x\n\n 12 naïve"})["tokens"] == ids
        servers = {"gguf f16": f16, "gguf q8_0": q8, "gguf lora on q4_1 base": on_base}
        forms = {name: served_llm(adapter, **server.connection) for name, server in servers.items()}
        merged_llm = LoraLLM.from_merged(merged)
        found = parity(LoraLLM.from_adapter(adapter), _rows(_THINGS[4:5]), {"merged": merged_llm, **forms})
    found.print()
    assert found.forms["merged"].identical == 1.0
    assert found.passed, found.verdict()
