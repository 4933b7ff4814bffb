"""Open an exported model as a LlamaIndex LLM."""

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

__all__ = ["open_export"]


@contextmanager
def open_export(
    export: str | Path, adapter: str | Path, *, format: str, base_model: str | None = None
) -> Iterator[LLM]:
    """The LLM of what ``export_adapter`` wrote, with prompts and bounds as ``adapter`` was trained.

    The GGUF formats are run by llama.cpp, which stops with the ``with`` block, and need the extras
    ``llamacpp`` and ``openai``.

    Args:
        export: The exported folder or file.
        adapter: The adapter that was exported; not read for ``merged``, which has its own card.
        format: ``merged``, ``gguf`` or ``gguf-adapter``. The last needs a base that came as a GGUF file.
        base_model: For ``gguf-adapter``: where the base is, if it moved after training.

    Yields:
        A ``LoraLLM`` for ``merged``, else a ``ServedLora``.

    Raises:
        ConfigurationError: The format is another one, the base of a ``gguf-adapter`` is no GGUF file, or a
            file is missing or does not load.
        MissingDependencyError: An extra is not installed.
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
            f"format {format!r}: expected merged, gguf or gguf-adapter, the formats that hold the trained weights"
        )
    with LlamaCppServer(model, lora=lora) as server:
        yield served_llm(adapter, **server.connection)
