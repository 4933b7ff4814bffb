"""Sequences of different lengths have buffers of their own: one long one costs the others nothing."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_index_finetune_structured.local.generate import decoders
from llama_index_finetune_structured.local.generate.kv_cache import KVCacheModel
from llama_index_finetune_structured.local.generate.request import GenerationRequest
from tests import tiny
from tests.local.test_decoding import _engine, _plainly, _prompts

KINDS = ["llama", "qwen2", "gemma2", "gpt2"]
MODELS = {kind: tiny.model(kind).eval() for kind in KINDS}


def _tokens(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(2, 258) for _ in range(count)]


def _expected(model: Any, tokens: list[int], new: int) -> torch.Tensor:
    """The logits after each of the last ``new`` tokens, without a cache."""
    return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -new:]


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(KINDS))
@torch.inference_mode()
def test_logits_are_those_without_a_cache_whoever_joins_grows_or_leaves(seed: int, kind: str) -> None:
    draw = random.Random(seed)
    plain, model = MODELS[kind], tiny.model(kind).eval()
    slots = KVCacheModel(model, short_tokens=4)
    rows: list[list[int]] = []
    for _ in range(12):
        if not rows or (len(rows) < 5 and draw.random() < 0.5):
            rows.append(_tokens(draw, draw.choice([1, 3, 5, 17, 70])))
            cached = slots.load(len(rows) - 1, [])
            found = slots.prefill(len(rows) - 1, rows[-1], cached)
            assert torch.allclose(found, _expected(plain, rows[-1], 1)[0], atol=1e-4)
        new = [_tokens(draw, draw.choice([1, 1, 2, 15])) for _ in rows]
        logits, order = slots.extend(new, [len(row) for row in rows])
        for slot, found in zip(order, logits.split([len(new[slot]) for slot in order]), strict=True):
            row, added = rows[slot], new[slot]
            row += added
            assert torch.allclose(found, _expected(plain, row, len(added)), atol=1e-4)
        for slot in reversed(range(len(rows))):
            if draw.random() < 0.3:
                last = rows.pop()
                if slot < len(rows):
                    slots.move(len(rows), slot)
                    rows[slot] = last


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_plain_decoding_in_any_mix_of_buffers(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders, "KVCacheModel", partial(KVCacheModel, short_tokens=16))
    model = tiny.model(kind).eval()
    expected = {prompt: _plainly(model, prompt, 60, None) for prompt in _prompts(9, seed=4)}
    engine = _engine(model)
    for _ in range(2):
        futures = [engine.submit(GenerationRequest(prompt, 60)) for prompt in expected]
        assert [list(future.result().tokens) for future in futures] == list(expected.values())


@torch.inference_mode()
def test_one_long_sequence_makes_no_other_one_long() -> None:
    draw = random.Random(5)
    slots = KVCacheModel(tiny.model("llama").eval())
    prompts = [_tokens(draw, count) for count in (100, 120, 6000, 90, 110, 130, 140, 100)]
    for slot, prompt in enumerate(prompts):
        slots.load(slot, [])
        slots.prefill(slot, prompt, 0)
    slots.extend([[7]] * 8, list(map(len, prompts)))
    held = sum(keys.shape[0] * keys.shape[1] for keys, _ in slots._layers[0].buffers.values())
    assert held < 2 * sum(map(len, prompts)) < 8 * 6000 / 3
    slots.move(7, 2)
    slots.extend([[7]] * 7, [101, 121, 101, 91, 111, 131, 141])
    held = sum(keys.shape[0] * keys.shape[1] for keys, _ in slots._layers[0].buffers.values())
    assert held < 4000, "what the long one held is free"
