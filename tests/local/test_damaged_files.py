"""A model whose files are damaged in any way works, or raises this package's error; it never hangs."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_index_finetune_structured.errors import ConfigurationError, FinetuneStructuredError
from llama_index_finetune_structured.files import read_json, write_json
from llama_index_finetune_structured.local.generate.loaded_models import load_local_model
from llama_index_finetune_structured.local.model.adapter import CARD, read_matching_card
from llama_index_finetune_structured.local.model.base_files import file_hash
from llama_index_finetune_structured.local.model.base_models import context_window, resolve
from llama_index_finetune_structured.local.model.lora_files import ADAPTER_CONFIG, WEIGHTS
from llama_index_finetune_structured.local.model.prompts import render_prompt
from tests import exporting, tiny

BASE = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors",
)
ADAPTER = (ADAPTER_CONFIG, WEIGHTS, CARD)
SECONDS = 60  # far more than any load takes, for a busy machine
ODD: list[Any] = [None, True, -1, 0, 2**31, 10**18, 1e308, "", "x" * 1000, "../..", [], {}, [[]], {"a": None}]

_cut = st.tuples(st.just("cut"), st.floats(0, 1), st.just(b""))
_flipped = st.tuples(st.just("flip"), st.floats(0, 0.999), st.binary(min_size=1, max_size=1))
_replaced = st.tuples(st.just("replace"), st.floats(0, 0.999), st.binary(min_size=1, max_size=16))
_header = st.tuples(st.just("start"), st.just(0.0), st.binary(min_size=1, max_size=10))
_odd_value = st.tuples(st.just("odd"), st.floats(0, 0.999), st.sampled_from(ODD))
_deep = st.tuples(st.just("deep"), st.just(0.0), st.sampled_from([b"[", b'{"a":']))
DAMAGES = st.one_of(_odd_value, _odd_value, _cut, _flipped, _replaced, _header, _deep)
Damage = tuple[str, float, Any]
_examples = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    exporting.train(tiny.save("llama", folder / "base"), folder / "run")
    return folder


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a JSON value with each of its keys."""
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    below = [place for key in keys if isinstance(value[key], (dict, list)) for place in _places(value[key])]
    return [*((value, key) for key in keys[:50]), *below]


def _damage(path: Path, damage: Damage) -> bool:
    """Damage a file; returns whether its content has changed."""
    kind, place, what = damage
    before = path.read_bytes()
    at = int(place * len(before))
    if kind == "cut":
        path.write_bytes(before[:at])
    elif kind == "deep":
        path.write_bytes(what * 100_000)
    elif kind == "odd" and path.suffix == ".json":
        content = json.loads(before)
        places = _places(content)
        container, key = places[int(place * len(places))]
        container[key] = what
        path.write_text(json.dumps(content))
    elif kind == "flip":
        path.write_bytes(before[:at] + bytes([before[at] ^ (what[0] or 1)]) + before[at + 1 :])
    else:
        what = what if isinstance(what, bytes) else b"\xff"
        path.write_bytes(before[:at] + what + before[at + len(what) :])
    return path.read_bytes() != before


def _works_or_is_refused(use: Callable[[], Any]) -> bool:
    started = time.monotonic()
    try:
        use()
    except FinetuneStructuredError:
        return False
    finally:
        assert time.monotonic() - started < SECONDS
    return True


def _load(base: Path, adapter: Path | None) -> None:
    found = resolve(base)
    context_window(found)
    model = load_local_model(str(base), adapter, 1)
    render_prompt(model.tokenizer, [{"role": "user", "content": "Hello <|im_end|> you."}])


@pytest.mark.parametrize("file", BASE)
@_examples
@given(damage=DAMAGES)
def test_a_damaged_base_loads_or_is_refused_and_its_adapter_always_refuses_it(
    file: str, damage: Damage, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    changed = _damage(folder / "base" / file, damage)
    works = _works_or_is_refused(lambda: _load(folder / "base", None))
    if not changed:
        assert works
        return
    with pytest.raises(ConfigurationError):
        read_matching_card(folder / "run" / "adapter", resolve(folder / "base"))


@pytest.mark.parametrize("pinned", [True, False], ids=["the card as it was", "a card that fits"])
@pytest.mark.parametrize("file", ADAPTER)
@_examples
@given(damage=DAMAGES)
def test_a_damaged_adapter_is_refused(
    file: str, pinned: bool, damage: Damage, whole: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    shutil.rmtree(adapter, ignore_errors=True)
    shutil.copytree(whole / "run" / "adapter", adapter)
    changed = _damage(adapter / file, damage)
    if not pinned and file != CARD:
        card = read_json(adapter / CARD)
        card["files"] = {name: file_hash(adapter / name) for name in (WEIGHTS, ADAPTER_CONFIG)}
        write_json(adapter / CARD, card)
    works = _works_or_is_refused(lambda: _load(whole / "base", adapter))
    if file != CARD and pinned:
        assert works is not changed


def test_a_base_whose_weights_are_missing_or_of_another_shape_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load, save_file

    base = tiny.save("llama", tmp_path / "base")
    path = base / "model.safetensors"
    tensors = load(path.read_bytes())
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({n: tensor for n, tensor in tensors.items() if n != name}, path, {"format": "pt"})
    with pytest.raises(ConfigurationError, match=rf"missing or of another shape.*{name}"):
        load_local_model(str(base), None, 1)
    save_file({**tensors, name: tensors[name][1:].contiguous()}, path, {"format": "pt"})
    with pytest.raises(ConfigurationError, match=name):
        load_local_model(str(base), None, 1)
