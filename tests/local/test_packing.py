"""Prefix-tree packing keeps every row's tokens and context, and with them loss and gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.local.model.base_models import DEFAULT_BASE_MODEL, load_model, resolve
from llama_index_finetune_structured.local.model.devices import precision
from llama_index_finetune_structured.local.model.prompts import TokenRow
from llama_index_finetune_structured.local.train import prefix_tree_attention
from llama_index_finetune_structured.local.train.loss import AnswerLoss, _own_logits
from llama_index_finetune_structured.local.train.packing import PackedBatch, pack
from llama_index_finetune_structured.local.train.packing_probe import why_not_packed
from tests import tiny
from tests.local import families

_tokens = st.lists(st.integers(2, 4), min_size=1, max_size=8).map(tuple)
_rows = st.lists(st.builds(TokenRow, _tokens, _tokens), min_size=1, max_size=7)

NESTED = [
    TokenRow((5, 6, 7, 8, 9, 10), (20, 21, 22)),
    TokenRow((5, 6, 7, 8, 9, 11), (23, 24)),
    TokenRow((5, 6, 7), (25, 26, 27)),  # a prompt that is a prefix of the others
    TokenRow((5, 6, 7, 8, 9, 10), (20, 21, 22)),  # a duplicate
    TokenRow((5, 6, 7, 8, 9, 10), (28,)),  # the same prompt, another answer
    TokenRow((40, 41), (42, 43)),  # nothing shared
]


def _context(batch: PackedBatch, at: int) -> list[int]:
    """The token ids that the flat position ``at`` attends to, in order."""
    segment = next(s for s in batch.segments if s.start <= at < s.stop)
    positions = [p for a, b in segment.ancestors for p in range(a, b)] + list(range(segment.start, at + 1))
    assert [batch.positions[p] for p in positions] == list(range(len(positions)))
    return [batch.ids[p] for p in positions]


@given(rows=_rows, min_shared=st.integers(1, 4))
def test_every_answer_token_is_predicted_from_exactly_its_own_row(
    rows: list[TokenRow], min_shared: int
) -> None:
    batch = pack(rows, min_shared=min_shared)
    expected = [
        (list(row.prompt + row.answer[:n]), label) for row in rows for n, label in enumerate(row.answer)
    ]
    assert [
        (_context(batch, at), label) for at, label in zip(batch.answer_at, batch.labels, strict=True)
    ] == expected


@given(rows=_rows)
def test_segments_cover_the_flat_row_once(rows: list[TokenRow]) -> None:
    batch = pack(rows, min_shared=1)
    assert [p for s in batch.segments for p in range(s.start, s.stop)] == list(range(len(batch.ids)))


def test_a_shared_prefix_stands_once() -> None:
    rows = [TokenRow((*range(100), n), (n, n)) for n in range(8)]
    assert len(pack(rows).ids) == 100 + 8 * 2
    assert pack(rows).plain_tokens == 8 * 102


def test_many_rows_and_long_rows_do_not_exhaust_the_stack() -> None:
    rows = [TokenRow((*range(n), 9999), (1, 1)) for n in range(20, 1200, 20)]
    assert len(pack(rows).labels) == 2 * len(rows)


def _gradients(kind: str, rows: list[TokenRow], *, packed: bool) -> tuple[float, torch.Tensor]:
    model = tiny.in_fp64(tiny.model(kind).eval())
    # PyTorch's own attention does not cap scores, as Gemma 2 does.
    model.set_attn_implementation("prefix_tree" if packed else "eager" if kind == "gemma2" else "sdpa")
    loss = float(AnswerLoss(model, packed).backward(rows))
    return loss, torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None])


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma", "gpt2"])
def test_packed_gradients_equal_those_of_the_plain_batch(kind: str) -> None:
    rows = [TokenRow(tuple(n % 250 + 2 for n in range(40)) + r.prompt, r.answer) for r in NESTED]
    plain_loss, plain = _gradients(kind, rows, packed=False)
    packed_loss, packed = _gradients(kind, rows, packed=True)
    assert packed_loss == pytest.approx(plain_loss, rel=1e-12)
    assert float((packed - plain).norm() / plain.norm()) < 1e-12


def test_attention_to_a_path_without_a_mask_has_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where flash attention takes no mask."""
    rows = [TokenRow(tuple(n % 250 + 2 for n in range(40)) + r.prompt, r.answer) for r in NESTED]
    masked_loss, masked = _gradients("llama", rows, packed=True)
    monkeypatch.setattr(prefix_tree_attention, "_WITHOUT_MASK", {"cpu"})
    loss, found = _gradients("llama", rows, packed=True)
    assert loss == pytest.approx(masked_loss, rel=1e-12)
    assert float((found - masked).norm() / masked.norm()) < 1e-12


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma", "gpt2"])
def test_full_attention_models_are_packed(kind: str) -> None:
    assert AnswerLoss.for_model(tiny.model(kind)).packed


def test_logits_computed_in_pieces_give_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    whole_loss, whole = _gradients("llama", NESTED, packed=True)
    monkeypatch.setattr("llama_index_finetune_structured.local.train.loss.LOGITS_AT_ONCE", 3 * 258)
    pieces_loss, pieces = _gradients("llama", NESTED, packed=True)
    assert pieces_loss == pytest.approx(whole_loss, rel=1e-12)
    assert float((pieces - whole).norm() / whole.norm()) < 1e-12


def test_a_model_that_caps_its_logits_is_trained_on_its_own_ones() -> None:
    assert AnswerLoss.for_model(tiny.model("llama")).chunked
    assert not AnswerLoss.for_model(tiny.model("gemma2")).chunked


@pytest.mark.parametrize(
    ("features", "vendor", "dtype"),
    [
        ({"avx512_bf16": True, "amx_bf16": True}, "GenuineIntel", torch.bfloat16),
        ({"avx512_bf16": True, "amx_bf16": False}, "GenuineIntel", torch.float32),
        ({"avx512_bf16": True}, "AuthenticAMD", torch.bfloat16),
        ({"avx512_bf16": False}, "AuthenticAMD", torch.float32),
    ],
)
def test_a_processor_that_multiplies_bf16_slowly_computes_in_fp32(
    monkeypatch: pytest.MonkeyPatch, features: dict[str, bool], vendor: str, dtype: torch.dtype
) -> None:
    monkeypatch.delenv("LLAMA_INDEX_FINETUNE_STRUCTURED_PRECISION")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"vendor_id : {vendor}")
    assert precision() is dtype


def test_the_precision_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_INDEX_FINETUNE_STRUCTURED_PRECISION", "bf16")
    assert precision() is torch.bfloat16
    monkeypatch.setenv("LLAMA_INDEX_FINETUNE_STRUCTURED_PRECISION", "half")
    with pytest.raises(ConfigurationError, match="PRECISION is 'half', expected bf16, fp16 or fp32"):
        precision()


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_embedded_default_is_packed_in_either_precision(
    monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setenv("LLAMA_INDEX_FINETUNE_STRUCTURED_PRECISION", dtype)
    assert AnswerLoss.for_model(load_model(resolve(DEFAULT_BASE_MODEL), dtype=precision())).packed


@pytest.mark.parametrize("kind", ["gemma2", "gemma3"])
def test_a_sliding_window_is_packed_with_the_loss_and_gradients_of_each_row_alone(kind: str) -> None:
    """``tiny.config``'s window is of 64 tokens: the rows are longer, and some fork outside the window."""
    rows = [TokenRow(tuple(n % 250 + 2 for n in range(100)) + r.prompt, r.answer) for r in NESTED]
    assert AnswerLoss.for_model(tiny.model(kind)).packed
    alone, plain = _gradients(kind, rows, packed=False)
    packed_loss, packed = _gradients(kind, rows, packed=True)
    assert packed_loss == pytest.approx(alone, rel=1e-6)
    assert float((packed - plain).norm() / plain.norm()) < 1e-5


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("lfm2", "layers of the type conv"),
        ("mamba", "layers of the type linear_attention"),
        ("llama4_text", "layers of the type chunked_attention"),
        ("bloom", "biased by distances"),
        ("gpt_oss", "cannot be packed"),
    ],
)
def test_what_connects_tokens_otherwise_is_trained_row_by_row_and_the_log_says_why(
    caplog: pytest.LogCaptureFixture, family: str, reason: str
) -> None:
    loss = AnswerLoss.for_model(families.model(family).bfloat16())
    assert not loss.packed
    assert reason in caplog.text
    assert loss.backward(NESTED) > 0


def test_a_model_is_judged_by_its_small_copy_even_where_its_own_weights_show_no_difference() -> None:
    """Positions that the model does not take show in no logits of weights as small as training starts with."""
    model = families.model("xglm")
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1e-3 if weight.dim() > 1 else 1)
    assert "off by" in str(why_not_packed(model, _own_logits))


def test_the_check_leaves_the_random_generator_as_it_is() -> None:
    model = tiny.model("llama")
    before = torch.random.get_rng_state()
    AnswerLoss.for_model(model)
    assert torch.equal(torch.random.get_rng_state(), before)


@settings(max_examples=10, deadline=None)
@given(rows=_rows)
def test_loss_of_a_batch_is_the_mean_over_all_its_answer_tokens(rows: list[TokenRow]) -> None:
    loss = AnswerLoss(tiny.model("llama"), packed=False)
    total = sum(len(row.answer) for row in rows)
    apart = sum(loss.mean([row]) * len(row.answer) for row in rows) / total
    assert loss.mean(rows) == pytest.approx(apart, rel=1e-5)
