"""Positions that are computed from the length of a sequence are those of that sequence alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Phi3Config

from llama_index_finetune_structured.local.generate.engine import GenerationEngine
from llama_index_finetune_structured.local.generate.request import GenerationRequest
from llama_index_finetune_structured.local.model.base_models import BaseModelFiles, load_model
from llama_index_finetune_structured.local.model.prompts import TokenRow
from llama_index_finetune_structured.local.model.rope import most_positions_alike
from llama_index_finetune_structured.local.train.loss import AnswerLoss
from tests import tiny
from tests.local import families

_SIZES = (
    "vocab_size bos_token_id eos_token_id pad_token_id hidden_size intermediate_size num_hidden_layers "
    "num_attention_heads num_key_value_heads"
)
ORIGINAL = 64
SHORT = [TokenRow((*range(3, 30), n), (n, n + 1)) for n in (40, 50)]
LONG = TokenRow(tuple(n % 250 + 3 for n in range(2 * ORIGINAL)), (9, 10, 11))


def _config(kind: str) -> Any:
    size = {name: getattr(tiny.config("llama"), name) for name in _SIZES.split()}
    if kind == "dynamic":
        rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
        return LlamaConfig(**size, max_position_embeddings=ORIGINAL, rope_parameters=rope)
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 3.0, 4.0, 5.0],
        "original_max_position_embeddings": ORIGINAL,
        "factor": 8.0,
    }
    return Phi3Config(
        **size,
        max_position_embeddings=8 * ORIGINAL,
        original_max_position_embeddings=ORIGINAL,
        rope_parameters=rope,
    )


@pytest.fixture(params=["longrope", "dynamic"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    families.random_model(_config(request.param)).save_pretrained(tmp_path)
    return load_model(BaseModelFiles(request.param, tmp_path, ""), dtype=torch.float32).eval()


def test_only_such_embeddings_have_a_length_up_to_which_sequences_are_alike() -> None:
    assert most_positions_alike(_config("longrope")) == ORIGINAL
    assert most_positions_alike(_config("dynamic")) == ORIGINAL
    assert most_positions_alike(tiny.config("llama")) is None
    assert most_positions_alike(tiny.config("gemma3")) is None


def test_a_row_s_loss_is_the_same_beside_and_after_a_long_one(model: Any) -> None:
    loss = AnswerLoss.for_model(model)
    assert loss.packed
    alone = [loss.mean([row]) for row in (*SHORT, LONG)]
    lengths = [len(row.answer) for row in (*SHORT, LONG)]
    mean = sum(value * length for value, length in zip(alone, lengths, strict=True)) / sum(lengths)
    assert loss.mean([*SHORT, LONG]) == pytest.approx(mean, rel=1e-5)
    assert [loss.mean([row]) for row in (*SHORT, LONG)] == pytest.approx(alone, rel=1e-6)
    assert len(list(loss._pieces(SHORT))) == 1  # short rows share a pass


def test_an_answer_is_the_same_beside_a_long_one(model: Any) -> None:
    prompts = [SHORT[0].prompt, LONG.prompt, SHORT[1].prompt]
    expected = [families.plainly(model, prompt, 20) for prompt in prompts]
    engine = GenerationEngine(model, stop_ids=[1], pad_id=1, batch_size=4)
    futures = [engine.submit(GenerationRequest(prompt, 20)) for prompt in prompts]
    assert [list(future.result().tokens) for future in futures] == expected
