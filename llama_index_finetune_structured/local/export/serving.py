"""Shell commands that serve an adapter or an export over OpenAI's protocol; nothing is run here."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from ...errors import ConfigurationError
from ..model.adapter import read_card
from ..model.base_models import BaseModelFiles, context_window, gguf_source, resolve
from ..model.lora_files import WEIGHTS, read_lora_config

__all__ = ["SERVERS", "ServingCommand", "serving_commands", "vllm_rank"]

_HOST = "127.0.0.1"
SERVERS = {"vllm": 8000, "sglang": 30000, "llama.cpp": 8080}
"""Supported server -> its default port."""
# Values of --max-lora-rank: https://github.com/vllm-project/vllm/blob/v0.26.0/vllm/config/lora.py
_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class ServingCommand:
    """A command line, and what ``served_llm`` needs to connect. ``str()`` gives the line for a shell.

    Attributes:
        arguments: The program and its arguments, unquoted.
        model: Name of the served model.
        api_base: Address of the server, on its default port.
    """

    arguments: tuple[str, ...]
    model: str
    api_base: str

    def __str__(self) -> str:
        return shlex.join(self.arguments)


def serving_commands(model: str | Path, *, name: str = "tuned") -> dict[str, ServingCommand]:
    """Commands that serve an adapter folder, a merged folder or a GGUF file as ``name``; by server.

    vLLM and SGLang serve folders. llama.cpp serves GGUF files, and an adapter where its base is one. All
    commands bind to loopback: put a proxy with authentication in front.

    Args:
        model: The adapter folder, merged folder or ``.gguf`` file.
        name: Name of the served model, without ``:`` and ``=``. For an adapter on llama.cpp the command
            expects it exported as ``gguf-adapter`` to ``<name>.gguf``.

    Returns:
        Command by server (``vllm``, ``sglang``, ``llama.cpp``), of those that serve this ``model``.

    Raises:
        ConfigurationError: ``model`` is another path, its base is not found, its LoRA rank is more than vLLM
            serves, or ``name`` has ``:`` or ``=``.
    """
    if ":" in name or "=" in name:
        raise ConfigurationError(f"name {name!r}: servers use ':' and '=' as separators; leave them out")
    path = Path(model)
    if os.path.isfile(path) and path.suffix.lower() == ".gguf":
        return {"llama.cpp": _command("llama.cpp", name, "llama-server", "--model", str(path))}
    if os.path.isfile(path / WEIGHTS):
        return _of_adapter(path, name)
    if os.path.isfile(path / "config.json"):
        window = context_window(BaseModelFiles(str(path), path, ""))
        return {
            "vllm": _command("vllm", name, *_vllm(path, name, window)),
            "sglang": _command("sglang", name, *_sglang(path, name, window)),
        }
    raise ConfigurationError(f"{path}: expected an adapter folder, a merged folder or a .gguf file")


def _of_adapter(adapter: Path, name: str) -> dict[str, ServingCommand]:
    base = resolve(read_card(adapter).base_model)
    rank = read_lora_config(adapter).r
    source, window = gguf_source(base), context_window(base)
    named = f"{name}={adapter.resolve()}"
    lora = ("--enable-lora", "--lora-modules", named, "--max-lora-rank", str(vllm_rank(rank)))
    paths = (
        "--enable-lora",
        "--lora-paths",
        named,
        "--max-lora-rank",
        str(rank),
        "--max-loras-per-batch",
        "1",
    )
    commands = {
        "vllm": _command("vllm", name, *_vllm(base.path, f"{name}-base", window), *lora),
        "sglang": _command(
            "sglang", f"{name}-base:{name}", *_sglang(base.path, f"{name}-base", window), *paths
        ),
    }
    if source is not None:
        lora_gguf = ("llama-server", "--model", str(source), "--lora", f"{name}.gguf")
        commands["llama.cpp"] = _command("llama.cpp", name, *lora_gguf)
    return commands


def _vllm(folder: Path, name: str, window: int) -> tuple[str, ...]:
    return ("vllm", "serve", str(folder), "--served-model-name", name, "--max-model-len", str(window))


def _sglang(folder: Path, name: str, window: int) -> tuple[str, ...]:
    launch = ("python", "-m", "sglang.launch_server", "--model-path", str(folder))
    return (*launch, "--served-model-name", name, "--context-length", str(window))


def vllm_rank(rank: int) -> int:
    """The smallest rank that vLLM accepts and that is at least ``rank``."""
    fitting = [allowed for allowed in _VLLM_RANKS if allowed >= rank]
    if not fitting:
        raise ConfigurationError(
            f"rank {rank}: vLLM serves LoRA up to rank {_VLLM_RANKS[-1]}; export as 'merged'"
        )
    return fitting[0]


def _command(server: str, name: str, *arguments: str) -> ServingCommand:
    port = SERVERS[server]
    alias = ("--alias", name) if server == "llama.cpp" else ()
    where = ("--host", _HOST, "--port", str(port))
    return ServingCommand((*arguments, *alias, *where), name, f"http://{_HOST}:{port}/v1")
