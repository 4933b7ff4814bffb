"""What training takes of memory is known before anything is loaded, and short memory is lived with where it can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
)

from llama_index_finetune_structured import LoraFinetuneEngine, LoraSettings, check
from llama_index_finetune_structured.engines import lora as engine_module
from llama_index_finetune_structured.errors import EngineError
from llama_index_finetune_structured.local.model.base_models import resolve
from llama_index_finetune_structured.local.model.prompts import TokenRow
from llama_index_finetune_structured.local.train import memory
from llama_index_finetune_structured.local.train.memory import (
    ModelShape,
    PieceSize,
    free_memory,
    model_shape,
    plan_lengths,
    plan_rows,
    shape_of,
    step_memory,
)
from tests import exporting
from tests.local.allocations import RANK, measured, shape

GIB = 2**30
TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "vocab_size": 258,
}
QWEN_HALF_B = Qwen2Config(
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    vocab_size=151936,
    tie_word_embeddings=True,
)
SMOLLM_2B = LlamaConfig(
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=24,
    num_attention_heads=32,
    vocab_size=49152,
    tie_word_embeddings=True,
)
QWEN_4B = Qwen3Config(
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=151936,
    tie_word_embeddings=True,
)
LLAMA_8B = LlamaConfig(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=128256,
)


def _rows(count: int, length: int, *, shared: int = 0, answer: int = 200) -> list[TokenRow]:
    return [
        TokenRow((1,) * shared + (10 + n,) * (length - answer - shared), (3,) * answer) for n in range(count)
    ]


def _estimate(config: Any, dtype: torch.dtype, rows: list[TokenRow], *, checkpointed: bool) -> int:
    sizes, shared = sum(map(len, rows)), sum(token == 1 for token in rows[0].prompt)
    piece = PieceSize(
        sizes - shared * (len(rows) - 1), sizes, sum(len(row.answer) for row in rows), max(map(len, rows))
    )
    made = shape(config, dtype)
    return step_memory(made, piece, rank=RANK, layers=made.layers, checkpointed=checkpointed)


def _stated(size: str) -> list[float]:
    """The row of docs/scaling.md for a size of model: GiB, computed once from the allocations of whole steps."""
    page = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith(f"| {size} ")]
    return [float(cell) for cell in row.strip("| ").split("|")[1:]]


@pytest.mark.parametrize(
    ("size", "config"),
    [("0.5B", QWEN_HALF_B), ("1.7B", SMOLLM_2B), ("4B", QWEN_4B), ("8B", LLAMA_8B)],
    ids=["0.5B", "1.7B", "4B", "8B"],
)
def test_the_estimate_is_that_of_the_table_of_half_a_billion_to_eight_billion_weights(
    size: str, config: Any
) -> None:
    weights, one, two, four, checkpointed = _stated(size)
    assert shape(config, torch.bfloat16).weights / GIB == pytest.approx(weights, abs=0.05)
    found = [
        _estimate(config, torch.bfloat16, _rows(count, 2048), checkpointed=False) / GIB for count in (1, 2, 4)
    ]
    assert found == pytest.approx([one, two, four], rel=0.05)
    assert _estimate(config, torch.bfloat16, _rows(4, 2048), checkpointed=True) / GIB == pytest.approx(
        checkpointed, rel=0.05
    )


def test_eight_billion_weights_of_4_bits_and_four_rows_of_2048_tokens_fit_into_13_gib() -> None:
    rows = _rows(4, 2048)
    piece = PieceSize(4 * 2048, 4 * 2048, 4 * 200, 2048)
    with torch.device("meta"):
        weights = dict(AutoModelForCausalLM.from_config(LLAMA_8B).named_parameters())
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    full = 2 * sum(weight.numel() for weight in weights.values())
    found = shape_of(LLAMA_8B, shapes, full, 2, "nf4")
    need = step_memory(found, piece, rank=RANK, layers=32, checkpointed=True)
    assert need < 12 * GIB < _estimate(LLAMA_8B, torch.bfloat16, rows, checkpointed=True)


@pytest.mark.slow
@pytest.mark.parametrize(("config", "most"), [(QWEN_4B, 12), (LLAMA_8B, 21)], ids=["4B", "8B"])
def test_four_rows_of_2048_tokens_fit_with_checkpointed_layers(config: Any, most: int) -> None:
    rows = _rows(4, 2048)
    peak = measured(config, torch.bfloat16, rows, checkpointed=True, fake=True)
    assert peak <= most * GIB
    assert _estimate(config, torch.bfloat16, rows, checkpointed=True) == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shared", [0, 400])
def test_the_estimate_is_what_a_step_really_allocates(
    dtype: torch.dtype, checkpointed: bool, shared: int
) -> None:
    config = Qwen3Config(
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        vocab_size=258,
    )
    rows = _rows(3, 600, shared=shared, answer=50)
    peak = measured(config, dtype, rows, checkpointed=checkpointed, fake=False)
    assert _estimate(config, dtype, rows, checkpointed=checkpointed) == pytest.approx(peak, rel=0.15)


@pytest.mark.filterwarnings(
    "ignore:The following (rank|alpha)_pattern keys:RuntimeWarning"
)  # peft's own, of Mixtral
@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**TINY, num_attention_heads=4),
        MixtralConfig(
            **TINY, num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2
        ),
        Gemma2Config(**TINY, num_attention_heads=4, head_dim=16, sliding_window=4096),
        OPTConfig(hidden_size=64, ffn_dim=256, num_hidden_layers=3, num_attention_heads=4, vocab_size=258),
    ],
    ids=["llama", "mixtral", "gemma2", "opt"],
)
def test_the_estimate_for_other_families_errs_on_the_safe_side(config: Any) -> None:
    rows = _rows(2, 600, answer=50)
    peak = measured(config, torch.float32, rows, checkpointed=False, fake=False)
    assert 0.85 * peak < _estimate(config, torch.float32, rows, checkpointed=False) < 1.8 * peak


def test_a_base_is_measured_by_the_headers_of_its_files(tiny_llama: Path) -> None:
    found = model_shape(resolve(tiny_llama))
    assert found is not None
    files = sum(path.stat().st_size for path in tiny_llama.glob("*.safetensors"))
    assert found.weights == pytest.approx(files * found.itemsize / 4, rel=0.1)
    assert (found.layers, found.queries, found.keys) == (2, 32, 16)


SHAPE = ModelShape(
    weights=0, adapted=0, layers=10, width=100, queries=100, keys=100, inner=300, vocabulary=10, itemsize=4
)
LONG = [TokenRow((9 + n,) * 900, (5,) * 100) for n in range(4)]


def _plan(free: int | None, **settings: Any) -> Any:
    return plan_rows(SHAPE, LoraSettings(batch_size=4, piece_tokens=8000, **settings), LONG, free)


def test_what_fits_is_left_as_it_is_and_what_does_not_is_checkpointed_then_taken_in_smaller_pieces() -> None:
    whole = _plan(None)
    assert (whole.checkpoint_layers, whole.piece_tokens, whole.fits) == (False, 8000, True)
    ways = [_plan(int(free)) for free in torch.linspace(2 * whole.need, 0, 200).tolist()]
    taken = list(dict.fromkeys((plan.checkpoint_layers, plan.piece_tokens) for plan in ways))
    assert taken[:2] == [(False, 8000), (True, 8000)]
    assert taken[-1] == (True, 1000), "in the end one row at a time"
    needs = [plan.need for plan in ways]
    assert needs == sorted(needs, reverse=True)
    assert [plan.fits for plan in ways] == sorted((plan.fits for plan in ways), reverse=True)
    assert not ways[-1].fits


def test_checkpointing_that_is_set_stays_as_it_is_set() -> None:
    assert _plan(None, checkpoint_layers=True).checkpoint_layers
    assert not _plan(1, checkpoint_layers=False).checkpoint_layers


def test_rows_that_share_a_prefix_need_less_and_fewer_trained_layers_too() -> None:
    shared = [TokenRow((9,) * 800 + (10 + n,) * 100, (5,) * 100) for n in range(4)]
    settings = LoraSettings(batch_size=4)
    assert plan_rows(SHAPE, settings, shared, None).need < 0.7 * _plan(None).need
    assert _plan(None, upper_layers=5).need < 0.6 * _plan(None).need


def test_a_containers_limit_bounds_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    unlimited = free_memory()
    assert unlimited is not None
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("600000\n")
    (tmp_path / "memory.stat").write_text("anon 400000\ninactive_file 100000\n")
    assert free_memory() == 500_000
    assert free_memory(processes=2) == 250_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory() == pytest.approx(unlimited, rel=0.5)


def _engine(base: Path, output: Path, **settings: Any) -> LoraFinetuneEngine:
    config = LoraSettings(rank=4, batch_size=2, epochs=2, checkpoint_steps=2, **settings)
    return LoraFinetuneEngine(exporting.colours(8), base_model=base, output_dir=output, config=config)


def _weights(output: Path) -> bytes:
    return (output / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_base_that_does_not_fit_is_refused_before_it_is_loaded(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "free_memory", lambda *_: 1000)
    monkeypatch.setattr("llama_index_finetune_structured.local.model.base_models.load_model", pytest.fail)
    with pytest.raises(
        EngineError, match=r"its longest row has \d+ tokens: about 0\.0 GiB of memory are needed"
    ):
        _engine(tiny_llama, tmp_path).finetune()
    assert not (tmp_path / "adapter").exists()


def test_short_memory_turns_checkpointing_on_and_changes_no_byte(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain, short = _engine(tiny_llama, tmp_path / "plain"), _engine(tiny_llama, tmp_path / "short")
    plain.finetune()
    found = model_shape(resolve(tiny_llama))
    assert found is not None
    rows, _ = short._training_rows()
    free = int(plan_rows(found, short.config, rows, None).need * 1.1)
    monkeypatch.setattr(engine_module, "free_memory", lambda *_: free)
    made: list[Any] = []
    own = short._trainer
    monkeypatch.setattr(short, "_trainer", lambda *args: made.append(own(*args)) or made[0])
    short.finetune()
    assert made[0].plan.checkpoint_layers
    assert _weights(tmp_path / "plain") == _weights(tmp_path / "short")


def test_settings_of_memory_and_logs_are_not_of_a_runs_identity(tiny_llama: Path, tmp_path: Path) -> None:
    plain = _engine(tiny_llama, tmp_path)
    other = _engine(
        tiny_llama, tmp_path, checkpoint_layers=True, piece_tokens=64, device="cpu", report_to=("mlflow",)
    )
    assert plain.fingerprint == other.fingerprint


def test_check_says_what_training_takes_at_most(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = check(exporting.colours(8), base_model=tiny_llama)
    assert report.memory is not None
    assert report.memory.fits
    assert "training: at most about 0.0 GiB of memory are needed, " in str(report)
    found = model_shape(resolve(tiny_llama))
    rows, _ = _engine(tiny_llama, tmp_path)._training_rows()
    assert found is not None
    assert plan_rows(found, LoraSettings(), rows, None).need <= report.memory.need
    monkeypatch.setattr(memory, "free_memory", lambda: 1000)
    short = check(exporting.colours(8), base_model=tiny_llama)
    assert short.ok, "another machine may have the memory"
    assert "that does not fit: end other programs" in str(short)
    assert check(exporting.colours(12), target="openai").memory is None


def test_damaged_weights_are_no_error_of_check(tiny_llama: Path, tmp_path: Path) -> None:
    for path in tiny_llama.iterdir():
        whole = path.read_bytes()
        (tmp_path / path.name).write_bytes(whole[:100] if path.suffix == ".safetensors" else whole)
    assert plan_lengths(resolve(tmp_path), 100, 1000, 10) is None
