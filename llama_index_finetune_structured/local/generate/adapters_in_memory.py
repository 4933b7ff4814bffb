"""Adapters of one base in memory, loaded when they are asked for and unloaded when the room is needed."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

from ...errors import ConfigurationError
from ...forks import ForkSafeLock
from ..model.adapter import read_card
from ..model.adapter_weights import AdapterWeights, read_adapter_weights
from ..model.base_files import hash_of_files

__all__ = ["AdaptersInMemory"]

_Key = tuple[Path, str]  # folder and hash of the files


class AdaptersInMemory:
    """The adapters used last, of ``limit_bytes`` together, one at least. Thread-safe.

    ``model``: the base; ``skeleton``: its ``structure``.
    """

    def __init__(self, model: Any, skeleton: Any, limit_bytes: int) -> None:
        self._model, self._skeleton, self._limit = model, skeleton, limit_bytes
        self._held: OrderedDict[_Key, AdapterWeights] = OrderedDict()
        self._using, self._loading = ForkSafeLock(), ForkSafeLock()

    @property
    def folders(self) -> list[Path]:
        """The folders of the adapters in memory, the one used last at the end."""
        with self._using:
            return [folder for folder, _ in self._held]

    def get(self, folder: Path, files: dict[str, str]) -> AdapterWeights:
        """The weights of an adapter with these files, by name their SHA-256.

        Raises ConfigurationError where they are damaged, or the folder holds another adapter now.
        """
        key = folder, hash_of_files(files)
        if (found := self._used(key)) is not None:
            return found
        with self._loading:
            if (found := self._used(key)) is not None:  # another thread has loaded it
                return found
            weights = read_adapter_weights(folder, self._model, self._skeleton)
            if read_card(folder).files != files:
                raise ConfigurationError(
                    f"{folder}: is another adapter than when its LLM was made, whose bounds and prompts are those of "
                    "the former: make a new one"
                )
            with self._using:
                self._held[key] = weights
                self._make_room()
        return weights

    def _used(self, key: _Key) -> AdapterWeights | None:
        with self._using:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def _make_room(self) -> None:
        size = sum(weights.bytes for weights in self._held.values())
        while size > self._limit and len(self._held) > 1:
            size -= self._held.popitem(last=False)[1].bytes

    def unload(self, folder: Path) -> None:
        """Forget the adapters in a folder and those below it. Requests that use one keep it until they end."""
        with self._using:
            for key in [key for key in self._held if folder in (key[0], *key[0].parents)]:
                del self._held[key]
