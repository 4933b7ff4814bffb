"""An adapter is served by the base of its training alone, and only as it was written."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load, save_file

from llama_index_finetune_structured import LoraLLM
from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.files import read_json, write_json
from llama_index_finetune_structured.local.export import export_adapter
from llama_index_finetune_structured.local.generate.loaded_models import load_local_model
from llama_index_finetune_structured.local.model.adapter import CARD, merge_adapter, read_card, write_card
from llama_index_finetune_structured.local.model.base_files import file_hash, hashed_files
from llama_index_finetune_structured.local.model.base_models import (
    BaseModelFiles,
    load_model,
    load_tokenizer,
    resolve,
)
from llama_index_finetune_structured.local.model.lora_files import ADAPTER_CONFIG, WEIGHTS
from tests import exporting, tiny


class Run:
    """A trained adapter and its base, in a folder that a test may damage."""

    def __init__(self, folder: Path) -> None:
        self.base, self.adapter = folder / "base", folder / "run" / "adapter"

    def llm(self) -> LoraLLM:
        return LoraLLM.from_adapter(self.adapter, base_model=str(self.base))

    def write_config(self, **changed: Any) -> None:
        """Another configuration with a card that fits it, as an attacker or another program writes both."""
        path = self.adapter / ADAPTER_CONFIG
        write_json(path, {**read_json(path), **changed})
        self.fit_card()

    def fit_card(self) -> None:
        card = read_json(self.adapter / CARD)
        card["files"] = {name: file_hash(self.adapter / name) for name in (WEIGHTS, ADAPTER_CONFIG)}
        write_json(self.adapter / CARD, card)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pinned")
    exporting.train(tiny.save("llama", folder / "base"), folder / "run")
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Run:
    shutil.copytree(trained, tmp_path / "copy")
    return Run(tmp_path / "copy")


def _edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return change


def _write(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    return change


def _other_weights(folder: Path) -> None:
    tensors = load((folder / "model.safetensors").read_bytes())
    save_file(
        {name: value + 1 for name, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )


DECIDING: dict[str, tuple[str, Callable[[Path], None]]] = {
    "weights": (r"weights \(model.safetensors\)", _other_weights),
    "config": (r"config \(config.json\)", _edit("config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-02')),
    "generation config": (
        r"generation config \(generation_config.json\)",
        _edit("generation_config.json", '"eos_token_id": 1', '"eos_token_id": 2'),
    ),
    "tokenizer": (
        r"tokenizer \(tokenizer.json\)",
        _edit("tokenizer.json", '"add_prefix_space": false', '"add_prefix_space": true'),
    ),
    "tokenizer config": (
        r"tokenizer \(tokenizer_config.json\)",
        _edit("tokenizer_config.json", '"<|im_end|>"', '"<|im_start|>"'),
    ),
    "added tokens": (r"tokenizer \(added_tokens.json, not in both\)", _write("added_tokens.json", "{}")),
    "special tokens": (r"tokenizer \(special_tokens_map.json, not in both\)", _write("special_tokens_map.json", "{}")),
    "template": (r"chat template \(chat_template.jinja\)", _edit("chat_template.jinja", "assistant", "model")),
    "more templates": (
        r"chat template \(additional_chat_templates/tool_use.jinja",
        _write("additional_chat_templates/tool_use.jinja", "x"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DECIDING)
def test_an_adapter_is_refused_on_a_base_with_another(what: str, run: Run) -> None:
    named, change = DECIDING[what]
    run.llm()
    change(run.base)
    with pytest.raises(ConfigurationError, match=rf"was trained on .* differs in {named}"):
        run.llm()


def test_what_decides_nothing_leaves_a_base_the_same(run: Run) -> None:
    before = resolve(run.base)
    (run.base / "README.md").write_text("# Hello")
    (run.base / "LICENSE").write_text("MIT")
    (run.base / "training_args.bin").write_bytes(b"pickle")
    (run.base / "trainer_state.json").write_text("{}")
    (run.base / "other.safetensors").write_bytes(b"not named by anything")
    for file in run.base.iterdir():
        os.utime(file, (1, 1))
    moved = run.base.rename(run.base.with_name("moved"))
    assert resolve(moved).sha256 == before.sha256


def test_every_vocabulary_file_that_transformers_reads_is_part_of_a_base(
    tiny_llama: Path, tmp_path: Path
) -> None:
    source = "\n".join(
        path.read_text(encoding="utf-8")
        for path in Path(transformers.__file__).parent.rglob("tokenization*.py")
    )
    tables = re.findall(r"VOCAB_FILES_NAMES\s*=\s*\{(.*?)\}", source, re.DOTALL)
    names = {name for table in tables for name in re.findall(r':\s*"([^"]+\.[a-z]+)"', table)}
    assert {"tokenizer.json", "merges.txt", "spiece.model"} <= names
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    for name in names:
        (base / name).touch()
    assert names <= hashed_files(base).keys()


def _sharded(base: Path) -> dict[str, str]:
    """Turn the weights of a base into two files with an index; returns the index."""
    tensors = load((base / "model.safetensors").read_bytes())
    names = sorted(tensors)
    where = {name: f"model-{1 + (n % 2)}.safetensors" for n, name in enumerate(names)}
    for file in set(where.values()):
        save_file({n: tensors[n] for n in names if where[n] == file}, base / file, {"format": "pt"})
    (base / "model.safetensors").unlink()
    write_json(base / "model.safetensors.index.json", {"metadata": {}, "weight_map": where})
    return where


def test_every_weight_file_that_the_index_names_is_part_of_a_base(run: Run) -> None:
    _sharded(run.base)
    before = resolve(run.base).sha256
    second = run.base / "model-2.safetensors"
    second.write_bytes(second.read_bytes()[:-1] + b"?")
    assert resolve(run.base).sha256 != before
    second.unlink()
    with pytest.raises(ConfigurationError, match=r"names model-2.safetensors, which is not there"):
        resolve(run.base)


@pytest.mark.parametrize(
    "place", ["../outside.safetensors", "/tmp/outside.safetensors", "weights.bin", "..\\x.safetensors", 3]
)
def test_an_index_that_names_a_file_elsewhere_is_refused(place: Any, run: Run) -> None:
    where = _sharded(run.base)
    write_json(run.base / "model.safetensors.index.json", {"weight_map": {**where, "lm_head.weight": place}})
    with pytest.raises(ConfigurationError, match=r"model.safetensors.index.json"):
        resolve(run.base)


def test_a_folder_of_links_as_in_the_hub_s_cache_is_pinned_by_what_they_lead_to(
    run: Run, tmp_path: Path
) -> None:
    snapshot, blobs = tmp_path / "snapshots", tmp_path / "blobs"
    shutil.copytree(run.base, blobs)
    snapshot.mkdir()
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    assert resolve(snapshot).sha256 == resolve(run.base).sha256
    _other_weights(blobs)
    assert resolve(snapshot).sha256 != resolve(run.base).sha256


def test_a_base_folder_that_sends_transformers_elsewhere_or_is_pickled_is_refused(run: Run) -> None:
    config = run.base / "adapter_config.json"
    config.write_text('{"base_model_name_or_path": "/elsewhere", "peft_type": "LORA"}')
    with pytest.raises(ConfigurationError, match=r"adapter_config.json.*merge the adapter"):
        resolve(run.base)
    config.unlink()
    (run.base / "model.safetensors").unlink()
    (run.base / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ConfigurationError, match=r"pytorch_model.bin.*can run code and are never read"):
        resolve(run.base)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_no_code_of_a_base_folder_runs(file: str, run: Run, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (run.base / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass C: pass\n")
    names = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C", "AutoTokenizer": ["evil.C", None]}
    write_json(run.base / file, {**read_json(run.base / file), "auto_map": names, "model_type": "evil"})
    base = resolve(run.base)
    for read in (load_tokenizer, lambda b: load_model(b, dtype=torch.float32)):
        with contextlib.suppress(ConfigurationError):
            read(base)
    assert not ran.exists()


def test_bases_of_equal_weights_and_other_tokenizers_or_templates_share_nothing(
    run: Run, tmp_path: Path
) -> None:
    other = shutil.copytree(run.base, tmp_path / "other")
    same = shutil.copytree(run.base, tmp_path / "same")
    _edit("chat_template.jinja", "assistant", "model")(other)
    one, two, three = (load_local_model(str(folder), None, 1) for folder in (run.base, other, same))
    assert one is three
    assert one is not two
    assert "assistant" in one.tokenizer.chat_template
    assert "'<|im_start|>model" in two.tokenizer.chat_template


def _swap(run: Run) -> None:
    tensors = load((run.adapter / WEIGHTS).read_bytes())
    pairs = (
        [name for name in tensors if "0.self_attn.q_proj" in name],
        [n for n in tensors if "1.self_attn.q_proj" in n],
    )
    first, second = (sorted(names) for names in pairs)
    for one, two in zip(first, second, strict=True):
        tensors[one], tensors[two] = tensors[two], tensors[one]
    save_file(tensors, run.adapter / WEIGHTS)


@pytest.mark.parametrize("name", [WEIGHTS, ADAPTER_CONFIG])
@pytest.mark.parametrize("how", ["flipped", "cut", "missing", "swapped"])
def test_an_adapter_file_that_changed_since_training_is_refused_by_name(
    name: str, how: str, run: Run
) -> None:
    path = run.adapter / name
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "swapped":
        _swap(run) if name == WEIGHTS else _edit(ADAPTER_CONFIG, '"lora_alpha": 16', '"lora_alpha": 17')(
            run.adapter
        )
    else:
        middle = len(content) // 2
        path.write_bytes(
            content[:-9]
            if how == "cut"
            else content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        )
    with pytest.raises(ConfigurationError, match=rf"{name}.*(train again|written by finetune)"):
        run.llm()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"r": 10**9}, "r: "),
        ({"r": 0}, "r: "),
        ({"r": "8"}, "r: "),
        ({"r": 4}, "rank 4, as adapter_config.json says"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"lora_alpha": -1}, "lora_alpha"),
        ({"lora_alpha": 1e300}, "lora_alpha"),
        ({"lora_alpha": float("nan")}, "lora_alpha|damaged|finite"),
        ({"target_modules": "(a|a)*$"}, "target_modules"),
        ({"target_modules": "all-linear"}, "target_modules"),
        ({"target_modules": ["(.*)*x"]}, "target_modules"),
        ({"target_modules": []}, "target_modules"),
        ({"target_modules": ["no_such_proj"]}, "no_such_proj.*no such layer"),
        ({"target_modules": ["q_proj"]}, "belongs to no layer"),
        ({"target_modules": ["norm"]}, "no such layer"),
        ({"layers_to_transform": [0], "target_modules": ["q_proj"]}, "belongs to no layer"),
        ({"layers_to_transform": [7]}, "block 7, and the base has 2"),
        ({"layers_to_transform": [-1]}, "layers_to_transform"),
        ({"layers_pattern": "(x+x+)+y"}, "layers_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"auto_mapping": {"parent_library": "os"}}, "auto_mapping"),
        ({"rank_pattern": {"(x+)+y": 9}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 900}}, "alpha_pattern"),
        ({"use_dora": True}, "use_dora"),
        ({"use_rslora": True}, "use_rslora"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"task_type": "SEQ_CLS"}, "task_type"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"a_key_of_a_later_peft": "x"}, "a_key_of_a_later_peft"),
    ],
    ids=str,
)  # fmt: skip
def test_an_adapter_config_that_is_not_plain_lora_of_the_base_is_refused_before_peft_reads_it(
    changed: dict[str, Any], message: str, run: Run
) -> None:
    run.write_config(**changed)
    with pytest.raises(ConfigurationError, match=message):
        run.llm().complete("x")


def test_keys_of_a_later_peft_that_are_off_are_read_over(run: Run) -> None:
    before = run.llm().complete("x").text
    run.write_config(a_key_of_a_later_peft=None, use_another=False, lora_dropout=0.1, peft_version="9")
    assert run.llm().complete("x").text == before


def _without(tensors: dict[str, torch.Tensor], name: str) -> None:
    del tensors[name]


def _renamed(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name.replace("q_proj", "w_proj")] = tensors.pop(name)


def _extra(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name.replace("layers.0", "layers.9")] = tensors[name].clone()


def _reshaped(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = tensors[name][:, :-1].contiguous()


def _integers(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = tensors[name].to(torch.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without, "is missing"),
        (_renamed, "is missing"),
        (_extra, "belongs to no layer"),
        (_reshaped, "another shape"),
        (_integers, "is int32"),
    ],
)  # fmt: skip
def test_an_adapter_whose_tensors_are_not_those_of_its_layers_is_refused(
    change: Callable[[dict[str, torch.Tensor], str], None], message: str, run: Run
) -> None:
    tensors = load((run.adapter / WEIGHTS).read_bytes())
    change(tensors, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight")
    save_file(tensors, run.adapter / WEIGHTS)
    run.fit_card()
    with pytest.raises(ConfigurationError, match=message):
        run.llm().complete("x")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("upper", [None, 1])
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # plain peft's own
def test_a_merged_adapter_has_the_weights_that_peft_gives_it(
    kind: str, upper: int | None, tmp_path: Path
) -> None:
    from peft import PeftModel

    from llama_index_finetune_structured.local.model.adapter import add_lora

    base = BaseModelFiles(kind, tiny.save(kind, tmp_path / "base"), "")
    tuned = add_lora(load_model(base, dtype=torch.float32), rank=4, alpha=8, upper_layers=upper)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    ours = merge_adapter(load_model(base, dtype=torch.float32), tmp_path / "adapter").state_dict()
    peft = PeftModel.from_pretrained(load_model(base, dtype=torch.float32), tmp_path / "adapter")
    theirs = peft.merge_and_unload().state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    plain = load_model(base, dtype=torch.float32).state_dict()
    assert any(not torch.equal(ours[name], plain[name]) for name in ours)


@pytest.mark.parametrize("value", [10**400, -1, "many", None], ids=["huge", "negative", "text", "nothing"])
@pytest.mark.parametrize("field", ["rows", "longest_answer_tokens"])
def test_a_card_with_senseless_figures_is_refused(value: Any, field: str, run: Run) -> None:
    card = read_json(run.adapter / CARD)
    write_json(run.adapter / CARD, {**card, field: value})
    with pytest.raises(ConfigurationError, match=CARD):
        run.llm()


def test_a_card_of_endless_nesting_or_size_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run.adapter / CARD
    whole = path.read_text()
    path.write_text('{"schemas": ' + "[" * 100_000)
    with pytest.raises(ConfigurationError, match=CARD):
        run.llm()
    monkeypatch.setattr("llama_index_finetune_structured.files._JSON_BYTES", len(whole))
    path.write_text(whole + " ")
    with pytest.raises(ConfigurationError, match="it has more than"):
        run.llm()


def test_a_merged_folder_is_served_only_as_it_was_exported(run: Run, tmp_path: Path) -> None:
    merged = export_adapter(run.adapter, tmp_path / "merged", dtype="f32", base_model=run.base)
    assert LoraLLM.from_merged(merged).complete("x").text == run.llm().complete("x").text
    for name in ("model.safetensors", "tokenizer.json", "chat_template.jinja"):
        path = merged / name
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        with pytest.raises(
            ConfigurationError, match=rf"{name} is not what {CARD} was written for.*export again"
        ):
            LoraLLM.from_merged(merged)
        path.write_bytes(content)
    LoraLLM.from_merged(merged)


def test_the_card_says_what_each_file_of_the_base_and_the_adapter_was(run: Run) -> None:
    card = read_card(run.adapter)
    assert card.base_files == resolve(run.base).files
    assert card.files == {name: file_hash(run.adapter / name) for name in (WEIGHTS, ADAPTER_CONFIG)}
    write_card(run.adapter, card, card.files)
    assert read_card(run.adapter) == card
    assert json.loads((run.adapter / CARD).read_text())["files"] == card.files
