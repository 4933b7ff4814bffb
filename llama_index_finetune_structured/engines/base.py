"""What every fine-tuning engine is: training data in, a LlamaIndex LLM out."""

from __future__ import annotations

import asyncio
import json
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ..errors import ConfigurationError

if TYPE_CHECKING:
    from llama_index.core.llms import LLM
    from typing_extensions import Self

__all__ = ["Data", "EventSaver", "FinetuneEngine", "SavesData", "given_data", "training_path"]


@runtime_checkable
class SavesData(Protocol):
    """A data set that can write itself as a training file; ``FinetuneDataset`` is one."""

    def save(self, path: str | Path, *, format: str) -> object: ...


class EventSaver(Protocol):
    """A fine-tuning handler: it writes the calls it captured as a training file."""

    def save_finetuning_events(self, path: str) -> None: ...


Data = str | os.PathLike[str] | SavesData


class FinetuneEngine(ABC):
    """Base of all engines, with the reference's names.

    ``finetune()`` trains, or submits the training; ``get_finetuned_model()`` returns the tuned model
    as a LlamaIndex LLM and raises EngineError when there is none.
    """

    @classmethod
    def from_finetuning_handler(
        cls, finetuning_handler: EventSaver, base_model: str, data_path: str | os.PathLike[str], **kwargs: Any
    ) -> Self:
        """Save what the handler captured to ``data_path`` and build the engine over that file.

        The engine's own ``__init__`` takes ``base_model`` and ``data_path``.
        """
        finetuning_handler.save_finetuning_events(os.fspath(data_path))
        return cls(base_model=base_model, data_path=data_path, **kwargs)  # type: ignore[call-arg]

    @abstractmethod
    def finetune(self) -> None:
        """Train (local engines), or submit the training and return (hosted engines)."""

    @abstractmethod
    def get_current_job(self) -> Any:
        """The state of the run, as the engine knows it."""

    @abstractmethod
    def get_finetuned_model(self, **llm_kwargs: Any) -> LLM:
        """The tuned model as a LlamaIndex LLM; raises EngineError when training did not succeed."""

    async def afinetune(self) -> None:
        """:meth:`finetune` for asyncio, on a thread; cancelling the task does not stop what has begun."""
        await asyncio.to_thread(self.finetune)

    async def aget_finetuned_model(self, **llm_kwargs: Any) -> LLM:
        """:meth:`get_finetuned_model` for asyncio, on a thread."""
        return await asyncio.to_thread(self.get_finetuned_model, **llm_kwargs)


def given_data(data: Data) -> Path | SavesData:
    """A training file as a path; a data set, or a file of canonical Examples, as a data set.

    Raises ConfigurationError when the file does not exist or the data is neither.
    """
    if isinstance(data, SavesData):
        return data
    if not isinstance(data, (str, os.PathLike)):
        raise ConfigurationError(f"data is a {type(data).__name__}; expected a path or a FinetuneDataset")
    path = Path(data)
    if not path.is_file():
        raise ConfigurationError(f"{path}: no such training file")
    return _loaded(path) if _is_canonical(path) else path


def _is_canonical(path: Path) -> bool:
    """Whether the file holds Examples, as captures and FinetuneDataset.save() write them."""
    with path.open("rb") as file:
        try:
            row = json.loads(file.readline())
        except (ValueError, RecursionError):
            return False
    return isinstance(row, dict) and "answer" in row and "messages" in row


def _loaded(path: Path) -> SavesData:
    from ..dataset import FinetuneDataset

    examples: SavesData = FinetuneDataset.load(path)
    return examples


def training_path(data: Path | SavesData, directory: Path, *, name: str, format: str) -> Path:
    """The training file behind ``data``: a path as it is, a data set saved to ``directory/name.jsonl``."""
    if isinstance(data, Path):
        return data
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.jsonl"
    data.save(path, format=format)
    return path
