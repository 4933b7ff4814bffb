"""Base class of the fine-tuning engines: training data in, a LlamaIndex LLM out."""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, overload, runtime_checkable

from ..errors import ConfigurationError
from ..formats.reading import holds_examples
from ..jsonl_store import shards_of

if TYPE_CHECKING:
    from llama_index.core.llms import LLM
    from typing_extensions import Self

__all__ = [
    "Data",
    "EventSaver",
    "FinetuneEngine",
    "SavesData",
    "named_file",
    "one_of_data",
    "path_or_dataset",
    "training_path",
]


@runtime_checkable
class SavesData(Protocol):
    """Protocol of datasets that can be written as a training file, such as ``FinetuneDataset``."""

    def save(self, path: str | Path, *, format: str) -> object: ...


class EventSaver(Protocol):
    """Protocol of fine-tuning handlers: they write the calls they captured as a training file."""

    def save_finetuning_events(self, path: str) -> None: ...


Data = str | os.PathLike[str] | SavesData


class FinetuneEngine(ABC):
    """Base class of all engines, with the method names of llama-index-finetuning.

    ``finetune()`` trains, or submits the training; ``get_finetuned_model()`` returns the tuned model as a
    LlamaIndex LLM.

    The constructors agree in two keywords: ``data`` is the training data, ``output_dir`` the folder of the
    run. Where llama-index-finetuning names the data ``data_path``, that is accepted in place of ``data``
    (``one_of_data``). All other parameters are the engine's own; therefore each engine implements
    ``_from_file``.
    """

    @classmethod
    def from_finetuning_handler(
        cls, finetuning_handler: EventSaver, base_model: str, data_path: str | os.PathLike[str], **kwargs: Any
    ) -> Self:
        """Save the calls that the handler captured to ``data_path`` and build the engine over that file.

        Args:
            finetuning_handler: A handler with ``save_finetuning_events``, of this package or of
                llama-index-finetuning.
            base_model: The model to fine-tune, under the name that the engine expects.
            data_path: Where the training file is written.
            **kwargs: Other parameters of the engine's constructor.
        """
        finetuning_handler.save_finetuning_events(os.fspath(data_path))
        return cls._from_file(base_model, Path(data_path), **kwargs)

    @classmethod
    @abstractmethod
    def _from_file(cls, base_model: str, data: Path, **options: Any) -> Self:
        """Call the constructor with the base model and the training file, under its own parameter names."""

    @abstractmethod
    def finetune(self) -> None:
        """Train (local engines), or submit the training and return (hosted engines)."""

    @abstractmethod
    def get_current_job(self) -> Any:
        """The state of the run."""

    @abstractmethod
    def get_finetuned_model(self, **llm_kwargs: Any) -> LLM:
        """The tuned model as a LlamaIndex LLM.

        Args:
            **llm_kwargs: Settings of the LLM, such as temperature; they override those of the run.

        Raises:
            EngineError: Training has not succeeded.
        """

    async def afinetune(self) -> None:
        """``finetune()`` for asyncio, on a thread; cancelling the task does not stop the thread."""
        await asyncio.to_thread(self.finetune)

    async def aget_finetuned_model(self, **llm_kwargs: Any) -> LLM:
        """``get_finetuned_model()`` for asyncio, on a thread.

        Args:
            **llm_kwargs: As for ``get_finetuned_model()``.

        Raises:
            EngineError: As ``get_finetuned_model()``.
        """
        return await asyncio.to_thread(self.get_finetuned_model, **llm_kwargs)


def one_of_data(data: Data | None, data_path: Data | None) -> Data:
    """The training data of a constructor that accepts ``data`` or ``data_path``.

    Raises ConfigurationError unless exactly one of them is passed.
    """
    if data is not None and data_path is not None:
        raise ConfigurationError("both data and data_path are set: pass one of them (they mean the same)")
    chosen = data_path if data is None else data
    if chosen is None:
        raise ConfigurationError("no training data: pass data=, a path or a FinetuneDataset")
    return chosen


def path_or_dataset(data: Data) -> Path | SavesData:
    """Return a training file as a path, and a dataset or a file of canonical Examples as a dataset.

    Raises ConfigurationError when the file does not exist or the data is neither.
    """
    if isinstance(data, SavesData):
        return data
    path = named_file(data)
    return _loaded(path) if holds_examples(path) else path


@overload
def named_file(data: str | os.PathLike[str]) -> Path: ...
@overload
def named_file(data: Data) -> Path | None: ...
def named_file(data: Data) -> Path | None:
    """The training file that the data names; None for a dataset.

    Raises ConfigurationError when the file does not exist or the data is neither.
    """
    if isinstance(data, SavesData):
        return None
    if not isinstance(data, (str, os.PathLike)):
        raise ConfigurationError(f"data is a {type(data).__name__}; expected a path or a FinetuneDataset")
    path = Path(data)
    if not any(file.is_file() for file in shards_of(path)):
        raise ConfigurationError(f"{path}: no such training file")
    return path


def _loaded(path: Path) -> SavesData:
    from ..dataset import FinetuneDataset

    examples: SavesData = FinetuneDataset.load(path)
    return examples


def training_path(data: Path | SavesData, directory: Path, *, name: str, format: str) -> Path:
    """The training file of ``data``: a path unchanged, a dataset saved to ``directory/name.jsonl`` first."""
    if isinstance(data, Path):
        return data
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.jsonl"
    data.save(path, format=format)
    return path
