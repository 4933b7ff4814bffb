"""What a build stands on: its own folder, a retriever, a teacher."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.llms import LLM
from llama_index.core.prompts.chat_prompts import TEXT_QA_PROMPT_TMPL_MSGS
from llama_index.core.schema import BaseNode
from pydantic import BaseModel, ConfigDict, ValidationError

from ..dataset import FinetuneDataset, RetrievalAugmentedDatasetBuilder
from ..errors import ConfigurationError, MissingDependencyError
from ..files import read_json, write_json

__all__ = [
    "OPENAI",
    "BuildSettings",
    "bm25_retriever",
    "claim",
    "held_out_path",
    "hosted_teacher",
    "labelled",
]

OPENAI = "https://api.openai.com/v1"
_ROOM = 4096  # tokens for prompt text, schema and answer, beside the chunks


class BuildSettings(BaseModel):
    """What kept answers depend on; a build's folder belongs to one such set. ``teacher`` None: labels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    answer_schema: dict[str, Any]
    teacher: str | None
    top_k: int
    chunk_size: int


def held_out_path(output: Path) -> Path:
    """``data.jsonl`` -> ``data.validation.jsonl``, beside it."""
    return output.with_name(f"{output.stem}.validation{output.suffix}")


def claim(output: Path, settings: BuildSettings) -> Path:
    """The folder beside ``output`` for what was paid for, made by these settings or new.

    Raises ConfigurationError where it was made by others, or ``output`` or the held-out rows by somebody else.
    """
    folder = output.with_name(f"{output.stem}.build")
    mark = folder / "build.json"
    if mark.is_file():
        _same(mark, settings)
        return folder
    for path in (output, held_out_path(output)):
        if path.exists():
            raise ConfigurationError(f"{path}: is there and no build made it; choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(mark, settings.model_dump(mode="json"))
    return folder


def _same(mark: Path, settings: BuildSettings) -> None:
    try:
        found = BuildSettings.model_validate(read_json(mark))
    except (ValueError, ValidationError) as error:
        raise ConfigurationError(f"{mark}: cannot be read ({error}); choose another --output") from error
    changed = [name for name in BuildSettings.model_fields if getattr(found, name) != getattr(settings, name)]
    if changed:
        raise ConfigurationError(
            f"{mark.parent}: holds answers that were made with another {', '.join(changed)}; choose another "
            "--output, or remove that folder and lose its answers"
        )


def bm25_retriever(nodes: Sequence[BaseNode], top_k: int) -> BaseRetriever:
    """Finds chunks by their words: no embedding model, no service."""
    try:
        from llama_index.retrievers.bm25 import BM25Retriever
    except ImportError as error:
        raise MissingDependencyError("llama-index-retrievers-bm25", "build", "build") from error
    retriever: BaseRetriever = BM25Retriever.from_defaults(
        nodes=list(nodes), similarity_top_k=min(top_k, len(nodes))
    )
    return retriever


def hosted_teacher(model: str, api_base: str | None, context_tokens: int) -> LLM:
    """The LLM to learn from. Raises ConfigurationError where OpenAI itself is meant and there is no key."""
    key = os.environ.get("OPENAI_API_KEY") or (api_base and "none")  # one's own server may ask for none
    if not key:
        raise ConfigurationError(
            "--teacher needs a key: set OPENAI_API_KEY, or --api-base for a server that asks for none"
        )
    try:
        from ..llms.hosted import hosted_llm
    except ImportError as error:
        raise MissingDependencyError(error.name or "openai", "build", "--teacher") from error
    options: dict[str, Any] = {"api_base": api_base or OPENAI, "api_key": key, "temperature": 0.0}
    options["max_retries"] = 0  # CallPolicy tries again; LlamaIndex's own tries would multiply with its
    llm = hosted_llm(model, **options)
    if llm.metadata.context_window < context_tokens + _ROOM:  # LlamaIndex's guess for names it does not know
        return hosted_llm(model, **options, context_window=context_tokens + _ROOM)
    return llm


def labelled(retriever: BaseRetriever, pairs: Path, output_cls: type[BaseModel]) -> FinetuneDataset:
    """Rows of a file of query/response pairs, with the prompts that LlamaIndex's query engines send."""
    system, user = TEXT_QA_PROMPT_TMPL_MSGS
    builder = RetrievalAugmentedDatasetBuilder(
        retriever,
        qa_template=str(user.content),
        system_prompt=str(system.content),
        output_cls=output_cls,
    )
    return builder.build(pairs)
