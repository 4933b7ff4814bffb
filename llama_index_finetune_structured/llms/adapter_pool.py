"""AdapterPool: the LLMs of several adapters over one base in memory."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError, MissingDependencyError
from ..forks import ForkSafeLock
from ..local.model.adapter import find_adapter, read_card
from ..local.model.base_models import DEFAULT_BASE_MODEL, resolve
from ..local.model.quantization import Quantization
from ..local.model.reading import structure
from .lora import LoraLLM

if TYPE_CHECKING:
    from ..local.generate.adapters_in_memory import AdaptersInMemory
    from ..local.generate.loaded_models import LocalModel

__all__ = ["AdapterPool"]


class AdapterPool:
    """LLMs of several adapters of one base, which is in memory once: concurrent calls of all share a batch.

    Each row of a batch has its own adapter's weights beside the base's, which are not merged. An answer is that of
    ``LoraLLM.from_adapter``, but for rounding. Adapters that change stacked experts, or layers inside an expert, are
    generated in batches of one adapter, one batch after the other; so are all adapters of models with more state than
    keys and values. Thread-safe. A deep copy is the same object.

    Args:
        base_model: Base model: name, folder, .gguf or hub id.
        limit_bytes: Most bytes of adapters in memory, of their files; those used last stay, one at least. Another's
            next call loads it again.
        batch_size: Most calls generated together in one batch.
        quantization: Hold the base's layers as in ``LoraSettings``.

    Raises:
        ConfigurationError: There is no such base model.
    """

    def __init__(
        self,
        base_model: str | Path = DEFAULT_BASE_MODEL,
        *,
        limit_bytes: int = 2**30,
        batch_size: int = 8,
        quantization: Quantization | None = None,
    ) -> None:
        self._base = resolve(base_model)
        self._fixed: dict[str, Any] = {
            "base_model": self._base.name,
            "batch_size": batch_size,
            "quantization": quantization,
        }
        self._limit_bytes = limit_bytes
        self._loading = ForkSafeLock()
        self._in_memory: tuple[LocalModel, AdaptersInMemory] | None = None

    def llm(self, adapter: str | Path | None = None, **settings: Any) -> LoraLLM:
        """The LLM of an adapter's or a finished run's folder, with the settings of training. Loads its weights.

        Args:
            adapter: The folder; None: the base without an adapter.
            **settings: Attributes of ``LoraLLM``; they override those of training.

        Raises:
            ConfigurationError: The folder holds no adapter, or one that is damaged, of another base, or trained on
                another quantisation of it; a setting is the pool's own.
            MissingDependencyError: The extra ``local`` is not installed.
        """
        if given := sorted(self._fixed.keys() & settings.keys()):
            raise ConfigurationError(
                f"{', '.join(given)}: of the pool, for all its LLMs; pass it to AdapterPool"
            )
        base, adapters = self._loaded()
        if adapter is None:
            llm = LoraLLM(**self._fixed, **settings)
            llm._model = base
            return llm
        folder = find_adapter(Path(adapter))
        trained, held = read_card(folder).quantization, self._fixed["quantization"]
        if trained != held:
            raise ConfigurationError(
                f"{folder}: was trained with quantization={trained!r}, and this pool has {held!r}: make an "
                f"AdapterPool with quantization={trained!r} for it"
            )
        from ..local.generate.loaded_models import AdaptedModel

        llm = LoraLLM.from_adapter(folder, **self._fixed, **settings)
        assert llm.adapter is not None
        llm._model = AdaptedModel(base, partial(adapters.get, llm.adapter, llm._adapter_files))
        _ = llm._model.adapter  # loaded now, so that what is wrong with it is raised here
        return llm

    @property
    def loaded(self) -> list[Path]:
        """The folders of the adapters in memory, the one used last at the end."""
        return [] if self._in_memory is None else self._in_memory[1].folders

    def unload(self, adapter: str | Path) -> None:
        """Free an adapter's memory, once the calls in progress have ended. The next call of its LLM loads it again.

        Args:
            adapter: The folder that was given to ``llm()``, which may be gone, or that of the LLM's ``adapter``.
        """
        if self._in_memory is not None:
            base, adapters = self._in_memory
            adapters.unload(Path(adapter).absolute())
            base.engine.drop_unloaded()

    def _loaded(self) -> tuple[LocalModel, AdaptersInMemory]:
        try:
            from ..local.generate.adapters_in_memory import AdaptersInMemory
            from ..local.generate.loaded_models import load_local_model
        except ImportError as error:
            raise MissingDependencyError(error.name or "torch", "local", "AdapterPool") from error
        with self._loading:
            if self._in_memory is None:
                base = load_local_model(
                    self._base.name, None, self._fixed["batch_size"], self._fixed["quantization"]
                )
                skeleton = structure(self._base.path)
                self._in_memory = base, AdaptersInMemory(base.engine.model, skeleton, self._limit_bytes)
            return self._in_memory

    def __deepcopy__(self, _memo: Any) -> AdapterPool:
        return self
