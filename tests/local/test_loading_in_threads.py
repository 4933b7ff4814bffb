"""Models that are loaded in several threads at once are those that one thread loads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from transformers import PreTrainedModel

from llama_index_finetune_structured.local.model.base_models import load_model, resolve
from tests import exporting


def test_tied_weights_stay_tied_when_threads_load_at_once(tmp_path: Path) -> None:
    base = resolve(exporting.save_base("qwen3", tmp_path / "base"))
    own = PreTrainedModel.tie_weights
    with ThreadPoolExecutor(8) as pool:
        models = list(pool.map(lambda _: load_model(base, dtype=torch.float32), range(24)))
    for model in models:
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert PreTrainedModel.tie_weights is own, "transformers' own method is replaced while it loads"
