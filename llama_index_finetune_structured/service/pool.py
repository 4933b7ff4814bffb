"""Loaded models of the service: loaded on first use, shared by requests, the least recently used unloaded."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from weakref import WeakValueDictionary

from ..errors import FinetuneStructuredError
from ..printable import package_logger
from .errors import ApiError

if TYPE_CHECKING:
    from ..llms.adapter_pool import AdapterPool
    from ..llms.lora import LoraLLM
    from .models import ServedModel

__all__ = ["LoadedModel", "ModelLease", "ModelPool"]

_log = package_logger(__name__)
_Key = tuple[str, Path | None]  # base and adapter: a name may become another model's
_Bases: TypeAlias = "WeakValueDictionary[tuple[str, str | None], AdapterPool]"  # by base and its quantisation


class LoadedModel(NamedTuple):
    """A model that can answer. ``unload``: frees what is its own, and holds what it shares until then; quick."""

    llm: LoraLLM
    unload: Callable[[], object]


class _Entry:
    """A model that is loaded, or being loaded. ``users``: leases that are not released."""

    def __init__(self, loading: asyncio.Future[LoadedModel]) -> None:
        self.loading, self.users = loading, 0

    @property
    def is_idle(self) -> bool:
        return not self.users and self.loading.done()


class ModelLease:
    """A loaded model that stays loaded until the lease is released; a context manager of its ``LoraLLM``."""

    def __init__(self, pool: ModelPool, entry: _Entry) -> None:
        self._pool, self._entry = pool, entry

    def __enter__(self) -> LoraLLM:
        return self._entry.loading.result().llm

    def __exit__(self, *_: object) -> None:
        self._pool._leave(self._entry)


class ModelPool:
    """The models of one process, each of which is loaded once, also where several first requests come together.

    Adapters of one base share its weights and batches. At most ``most_loaded`` models are loaded: for another one, the
    least recently used of those that no request uses is unloaded. Where requests use all, those that need another model
    wait, and all that come later wait behind them, so that no model is kept out by busy ones. Used by one event loop.
    """

    def __init__(self, *, most_loaded: int = 8, options: Mapping[str, Any] | None = None) -> None:
        """``options``: attributes of ``LoraLLM`` for all models; they override those of training."""
        self._most_loaded, self._options = most_loaded, dict(options or {})
        self._bases: _Bases = WeakValueDictionary()
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()  # the least recently used first
        self._turn = asyncio.Lock()  # hands over in order of arrival
        self._left = asyncio.Event()
        # One model is loaded at a time: in the threads of asyncio, loads would keep ready models' calls waiting.
        self._loader = ThreadPoolExecutor(1, "model-loader")

    @property
    def loaded(self) -> list[_Key]:
        """Base and adapter of each model that is loaded or being loaded, the least recently used first."""
        return list(self._entries)

    async def lease(self, model: ServedModel) -> ModelLease:
        """The model, loaded. Raises ApiError where it cannot be loaded.

        Cancelled in the meantime, it is loaded all the same: others may wait for it.
        """
        key = model.base, model.adapter
        async with self._turn:
            entry = self._entries.get(key)
            if entry is None:
                await self._make_room()
                entry = self._load(key)
            entry.users += 1
            self._entries.move_to_end(key)
        try:
            await asyncio.shield(entry.loading)
        except BaseException as error:
            self._leave(entry)
            if isinstance(error, Exception) and not isinstance(error, ApiError):
                raise _not_loaded(model.name, error) from error
            raise
        return ModelLease(self, entry)

    def start(self) -> None:
        """Begin what loading needs, without waiting for it."""

    @property
    def is_ready(self) -> bool:
        """Whether models can be loaded now."""
        return True

    def close(self) -> None:
        """Unload all models, once their leases are released."""
        self._entries.clear()
        self._loader.shutdown(wait=False, cancel_futures=True)

    def _opened(self, base: str, adapter: Path | None) -> LoadedModel:
        """The model, loaded. Runs in the thread of loading."""
        return _loaded(self._bases, base, adapter, self._options)

    def _load(self, key: _Key) -> _Entry:
        loop = asyncio.get_running_loop()
        loading = loop.run_in_executor(self._loader, self._opened, *key)
        entry = self._entries[key] = _Entry(loading)

        def forget_failed(task: asyncio.Future[LoadedModel]) -> None:
            failed = task.cancelled() or task.exception() is not None
            if failed and self._entries.get(key) is entry:
                del self._entries[key]
            self._left.set()

        loading.add_done_callback(forget_failed)
        return entry

    async def _make_room(self) -> None:
        """Unload what was deleted, and the least recently used until another model may be loaded."""
        for key, entry in list(self._entries.items()):
            if entry.is_idle and key[1] is not None and not key[1].is_dir():
                self._unload(key)
        while len(self._entries) >= self._most_loaded:
            idle = next((key for key, entry in self._entries.items() if entry.is_idle), None)
            if idle is not None:
                self._unload(idle)
                continue
            self._left.clear()
            await self._left.wait()

    def _unload(self, key: _Key) -> None:
        self._entries.pop(key).loading.result().unload()

    def _leave(self, entry: _Entry) -> None:
        entry.users -= 1
        self._left.set()


def _loaded(bases: _Bases, base: str, adapter: Path | None, options: Mapping[str, Any]) -> LoadedModel:
    """The LLM of a base and an adapter, with its weights in memory; adapters of one base share its weights."""
    from ..llms.adapter_pool import AdapterPool
    from ..local.model.adapter import find_adapter, read_card
    from ..local.model.devices import release_idle_threads

    quantization = None if adapter is None else read_card(find_adapter(adapter)).quantization
    shared = bases.get((base, quantization))
    if shared is None:
        shared = bases[base, quantization] = AdapterPool(base, quantization=quantization)
    llm = shared.llm(adapter, **options)
    release_idle_threads()  # those of this thread, which waits for other work from now on
    return LoadedModel(llm, partial(_unload, shared, llm.adapter))


def _unload(shared: AdapterPool, adapter: Path | None) -> None:
    if adapter is not None:
        shared.unload(adapter)


def _not_loaded(name: str, error: Exception) -> ApiError:
    """The error for the client, without the folders that ``error`` names."""
    known = error if isinstance(error, FinetuneStructuredError) else None
    _log.error("the model %s cannot be loaded: %s", name, error, exc_info=known is None)
    return ApiError(
        500,
        f"The model {name!r} cannot be loaded; the server's log says why.",
        param="model",
        code="model_not_loaded",
    )
