"""Embedding models in memory: each is loaded by its first request; sentence-transformers computes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ..errors import MissingDependencyError
from ..local.model.devices import best_device, release_idle_threads
from ..local.model.reading import transformers_library
from ..printable import package_logger
from .errors import ApiError, invalid

if TYPE_CHECKING:
    import numpy

__all__ = ["EmbeddingModels", "Embeddings"]

_log = package_logger(__name__)
_AT_ONCE = 32  # inputs, so that requests take turns; the default of sentence-transformers
_Inputs: TypeAlias = "Sequence[str | list[int]]"


class Embeddings(NamedTuple):
    """``vectors`` [inputs, dimensions] in fp32, each of length 1. ``tokens``: of all inputs together."""

    vectors: numpy.ndarray
    tokens: int


class EmbeddingModels:
    """The embedding models of a service, by name. Used by one event loop.

    ``folders``: of each model, as sentence-transformers saves one. ``most_waiting``: most requests at a time.
    """

    def __init__(self, folders: Mapping[str, str], *, most_waiting: int = 256) -> None:
        self._folders, self._most_waiting = dict(folders), most_waiting
        self._models: dict[str, Any] = {}
        self._computing = ThreadPoolExecutor(1, "embeddings")  # a batch takes all cores
        self._waiting = 0

    async def embed(self, name: str, inputs: _Inputs, dimensions: int | None = None) -> Embeddings:
        """The embeddings of texts, or of token ids of the model's own tokenizer.

        Raises ApiError: 404 where there is no such model, 400 for inputs that are too long or no tokens, and for other
        dimensions than the model's, 429 where too many requests wait, 500 where the model cannot be loaded.
        """
        if name not in self._folders:
            known = (
                ", ".join(self._folders)
                or "none; 'finetune-structured serve --embeddings NAME=FOLDER' adds one"
            )
            raise ApiError(
                404, f"The embedding model {name[:200]!r} does not exist. There are: {known}.", param="model",
                code="model_not_found",
            )  # fmt: skip
        if self._waiting >= self._most_waiting:
            raise ApiError(
                429, "The server is busy: too many requests wait.", code="too_many_waiting",
                headers={"Retry-After": "5"},
            )  # fmt: skip
        self._waiting += 1
        try:
            texts, tokens = await self._compute(self._read, name, inputs, dimensions)
            parts = [
                await self._compute(self._vectors, name, texts[start : start + _AT_ONCE])
                for start in range(0, len(texts), _AT_ONCE)
            ]
        finally:
            self._waiting -= 1
        import numpy

        return Embeddings(numpy.concatenate(parts), tokens)

    def close(self) -> None:
        """Unload the models."""
        self._computing.shutdown(wait=False, cancel_futures=True)
        self._models.clear()

    async def _compute(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._computing, function, *arguments)

    def _read(self, name: str, inputs: _Inputs, dimensions: int | None) -> tuple[list[str], int]:
        """The inputs as texts, and how many tokens they have."""
        model = self._loaded(name)
        own = model.get_embedding_dimension()
        if dimensions not in (None, own):
            raise invalid(
                f"dimensions: {dimensions} is not supported by {name!r}: leave it out, or send {own}",
                "dimensions",
            )
        texts = [_text(model.tokenizer, one, at) for at, one in enumerate(inputs)]
        lengths = [len(ids) for ids in model.tokenizer(texts, truncation=False)["input_ids"]]
        most = model.max_seq_length
        for at, length in enumerate(lengths):
            if most is not None and length > most:
                raise invalid(
                    f"input[{at}] has {length} tokens, and {name!r} reads at most {most}: split it into smaller texts",
                    "input",
                    code="context_length_exceeded",
                )
        return texts, sum(lengths)

    def _vectors(self, name: str, texts: list[str]) -> numpy.ndarray:
        vectors: numpy.ndarray = self._models[name].encode(
            texts, batch_size=_AT_ONCE, show_progress_bar=False, normalize_embeddings=True
        )
        release_idle_threads()
        return vectors.astype("<f4")

    def _loaded(self, name: str) -> Any:
        if name not in self._models:
            try:
                self._models[name] = _load(self._folders[name])
            except Exception as error:  # of many kinds: of transformers, of damaged files
                _log.error("the embedding model %s cannot be loaded: %s", name, error)
                raise ApiError(
                    500, f"The model {name!r} cannot be loaded; the server's log says why.", param="model",
                    code="model_not_loaded",
                ) from error  # fmt: skip
        return self._models[name]


def _load(folder: str) -> Any:
    """The model of a folder, from safetensors and without running code from it."""
    transformers_library()  # which shows bars else
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingDependencyError(
            error.name or "sentence_transformers", "embeddings", "Embeddings"
        ) from error
    return SentenceTransformer(
        folder,
        device=best_device(),
        local_files_only=True,
        trust_remote_code=False,
        model_kwargs={"use_safetensors": True},
    )


def _text(tokenizer: Any, ids: str | list[int], at: int) -> str:
    """The text of token ids, without control tokens: those that the model needs are added to each text."""
    if isinstance(ids, str):
        return ids
    if unknown := [number for number in ids if number >= len(tokenizer)]:
        raise invalid(
            f"input[{at}]: {unknown[0]} is no token of this model, which has {len(tokenizer)}: send the text instead",
            "input",
        )
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    if not text:
        raise invalid(f"input[{at}]: these tokens are no text", "input")
    return text
