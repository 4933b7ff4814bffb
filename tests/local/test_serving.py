"""Commands for vLLM, SGLang and llama.cpp use documented options only, with the adapter's values.

The documented options, as they stood in 2026-11: vLLM v0.26 (vllm/config/lora.py, vllm/entrypoints/openai/cli_args.py,
``vllm serve --help``), SGLang's docs/advanced_features/server_arguments.md, llama.cpp's tools/server/README.md.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import pytest

from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.files import write_json
from llama_index_finetune_structured.local.export.serving import serving_commands
from llama_index_finetune_structured.local.model.adapter import AdapterCard, write_card
from llama_index_finetune_structured.local.model.base_files import file_hash
from llama_index_finetune_structured.local.model.base_models import resolve
from llama_index_finetune_structured.local.model.lora_files import ADAPTER_CONFIG, WEIGHTS
from llama_index_finetune_structured.local.schema.bounds import AnswerBounds


def _parser(server: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--host", type=str)
    parser.add_argument("--port", type=int)
    if server == "vllm":
        parser.add_argument("model", type=str)
        parser.add_argument("--served-model-name", nargs="+")
        parser.add_argument("--max-model-len", type=int)
        parser.add_argument("--enable-lora", action="store_true")
        parser.add_argument("--lora-modules", nargs="+")
        parser.add_argument("--max-lora-rank", type=int, choices=[1, 8, 16, 32, 64, 128, 256, 320, 512])
    elif server == "sglang":
        parser.add_argument("--model-path", required=True)
        parser.add_argument("--served-model-name", type=str)
        parser.add_argument("--context-length", type=int)
        parser.add_argument("--enable-lora", action="store_true")
        parser.add_argument("--lora-paths", nargs="*")
        parser.add_argument("--max-lora-rank", type=int)
        parser.add_argument("--max-loras-per-batch", type=int)
    else:
        parser.add_argument("-m", "--model", required=True)
        parser.add_argument("--lora", type=str)
        parser.add_argument("-a", "--alias", type=str)
    return parser


LAUNCH = {
    "vllm": ["vllm", "serve"],
    "sglang": ["python", "-m", "sglang.launch_server"],
    "llama.cpp": ["llama-server"],
}


def _checked(server: str, command: object) -> argparse.Namespace:
    """The shell line of a command, as the server's own parser reads it."""
    words = shlex.split(str(command))
    assert words[: len(LAUNCH[server])] == LAUNCH[server]
    return _parser(server).parse_args(words[len(LAUNCH[server]) :])


def _adapter(base: Path, folder: Path, rank: int) -> Path:
    folder.mkdir()
    card = AdapterCard(
        base_model=str(base),
        base_sha256=resolve(base).sha256,
        bounds=AnswerBounds(),
        longest_answer_tokens=9,
        rows=1,
        fingerprint="f",
    )
    lora = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "lora_alpha": 1}
    write_json(folder / ADAPTER_CONFIG, {**lora, "r": rank})
    (folder / WEIGHTS).touch()
    write_card(folder, card, {name: file_hash(folder / name) for name in (ADAPTER_CONFIG, WEIGHTS)})
    return folder


@pytest.mark.parametrize(("rank", "room"), [(1, 1), (4, 8), (16, 16), (100, 128), (512, 512)])
def test_an_adapter_is_served_on_its_base_with_room_for_its_rank(
    tiny_llama: Path, tmp_path: Path, rank: int, room: int
) -> None:
    folder = _adapter(tiny_llama, tmp_path / "an adapter", rank)
    commands = serving_commands(folder, name="cites")
    vllm = _checked("vllm", commands["vllm"])
    assert (vllm.model, vllm.enable_lora, vllm.lora_modules) == (str(tiny_llama), True, [f"cites={folder}"])
    assert (vllm.max_lora_rank, vllm.max_model_len, vllm.port) == (room, 8192, 8000)
    assert commands["vllm"].model == "cites"
    sglang = _checked("sglang", commands["sglang"])
    assert (sglang.model_path, sglang.enable_lora, sglang.lora_paths) == (
        str(tiny_llama),
        True,
        [f"cites={folder}"],
    )
    assert (sglang.max_lora_rank, sglang.context_length, sglang.port) == (rank, 8192, 30000)
    assert commands["sglang"].model == f"{sglang.served_model_name}:cites", "SGLang's base:adapter names"
    assert "llama.cpp" not in commands, "the base is no GGUF file"


def test_a_merged_folder_is_served_under_its_name(tiny_llama: Path) -> None:
    commands = serving_commands(tiny_llama, name="cites")
    assert _checked("vllm", commands["vllm"]).served_model_name == ["cites"]
    assert _checked("sglang", commands["sglang"]).served_model_name == "cites"
    assert {command.model for command in commands.values()} == {"cites"}
    assert commands["sglang"].api_base == "http://127.0.0.1:30000/v1"


def test_a_gguf_file_is_served_by_llama_cpp(tmp_path: Path) -> None:
    file = tmp_path / "tuned.gguf"
    file.touch()
    (command,) = serving_commands(file).values()
    read = _checked("llama.cpp", command)
    assert (read.model, read.alias, read.host, read.port) == (str(file), "tuned", "127.0.0.1", 8080)


def test_what_no_server_takes_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="vLLM serves LoRA up to rank 512"):
        serving_commands(_adapter(tiny_llama, tmp_path / "wide", 600))
    with pytest.raises(ConfigurationError, match=r"expected an adapter folder, a merged folder or a \.gguf"):
        serving_commands(tmp_path)
    with pytest.raises(ConfigurationError, match="leave them out"):
        serving_commands(tiny_llama, name="a:b")
