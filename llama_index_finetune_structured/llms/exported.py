"""An export opened again as a LlamaIndex LLM, whatever its format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llama_index.core.llms.llm import LLM

from ..errors import ConfigurationError
from ..local.model.adapter import read_card
from ..local.model.base_models import gguf_source, resolve
from .llama_cpp import LlamaCppServer
from .lora import LoraLLM

__all__ = ["opened_export"]


@contextmanager
def opened_export(
    export: str | Path, adapter: str | Path, *, format: str, base_model: str | None = None
) -> Iterator[LLM]:
    """The LLM of what ``export_adapter`` wrote, asked as ``adapter`` was trained; closed with the block.

    ``gguf`` and ``gguf-adapter`` are run by llama.cpp and need the extras ``llamacpp`` and ``openai``;
    ``gguf-adapter`` also a base that came as a GGUF file, ``base_model`` where it moved after training.
    """
    if format == "merged":
        yield LoraLLM.from_merged(export)
        return
    from .served import served_llm

    model, lora = Path(export), None
    if format == "gguf-adapter":
        source = gguf_source(resolve(base_model or read_card(Path(adapter)).base_model))
        if source is None:
            raise ConfigurationError(
                f"{export}: llama.cpp runs it on a GGUF base, and this base is a folder: export 'gguf-base' too and "
                "open both with LlamaCppServer(base, lora=...)"
            )
        model, lora = source, Path(export)
    elif format != "gguf":
        raise ConfigurationError(
            f"format {format!r}: only merged, gguf and gguf-adapter hold what was trained"
        )
    with LlamaCppServer(model, lora=lora) as server:
        yield served_llm(adapter, **server.connection)
