"""Models of the service that a vLLM server answers with: prompts and grammars are made here, adapters loaded there."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import ConfigurationError, EngineError, FinetuneStructuredError
from ...llms.lora import LoraLLM
from ...local.model.adapter import find_adapter, read_card
from ...local.model.base_files import hash_of_files
from ...local.model.base_models import resolve
from ...local.model.lora_files import read_lora_config
from ...printable import package_logger
from ..models import ModelStore
from ..pool import LoadedModel, ModelPool
from ..settings import ServiceSettings
from .client import VllmClient, unavailable
from .model import VllmBase
from .server import RunningVllm, VllmChild, VllmServer

__all__ = ["VllmPool", "vllm_pool"]

_log = package_logger(__name__)
_NAME_DIGITS = 32


class VllmPool(ModelPool):
    """As ``ModelPool``; the weights are in a vLLM server of one base, which this pool starts and ends.

    Its adapters are loaded at runtime under names that are hashes of their files, by folders that no client names. A
    model that the server lost, because it started anew, is loaded again by its next request.
    """

    def __init__(
        self, server: VllmServer, *, most_loaded: int = 8, options: Mapping[str, Any] | None = None
    ) -> None:
        """``most_loaded`` and ``options``: as of ``ModelPool``."""
        super().__init__(most_loaded=most_loaded, options=options)
        self._server = server
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm-client", daemon=True)
        self._client = VllmClient(server)
        self._base: VllmBase | None = None

    def start(self) -> None:
        """Start the server, without waiting until it answers."""
        self._thread.start()
        self._server.start()

    @property
    def is_ready(self) -> bool:
        """Whether the server answers."""
        return self._server.is_ready

    def close(self) -> None:
        """Forget all models, end the requests in progress and the server."""
        super().close()
        if self._thread.is_alive():
            with suppress(Exception):  # a connection that is broken
                asyncio.run_coroutine_threadsafe(self._end_requests(), self._loop).result(10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()
        self._server.end()

    async def _end_requests(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()

    def _opened(self, base: str, adapter: Path | None) -> LoadedModel:
        try:
            self._server.wait_ready()
            info = self._client.base()
        except EngineError as error:
            _log.error("%s", error)
            raise unavailable(error) from error
        if self._base is None:
            self._base = VllmBase(base, self._client, self._loop)
        if adapter is None:
            llm = LoraLLM(base_model=base, **self._options)
            llm._model = self._base.model(info.name, self._server.wait_ready)
            unload: Callable[[], object] = _keep
        else:
            folder = find_adapter(adapter)
            llm = LoraLLM.from_adapter(folder, **{**self._options, "base_model": base})
            name = self._loaded_there(folder)
            llm._model = self._base.model(name, partial(self._client.load, name, folder))
            unload = partial(self._loader.submit, self._unload_there, name)
        if info.context_window is not None:
            llm._context_window = min(llm._context_window, info.context_window)
        return LoadedModel(llm, unload)

    def _loaded_there(self, folder: Path) -> str:
        """The name under which the server has an adapter: the hash of its files, which its card was checked by."""
        card = read_card(folder)
        if card.quantization is not None:
            raise ConfigurationError(
                f"{folder}: was trained with quantization={card.quantization!r}, and the vLLM server has the base as "
                "it is: serve it with the backend 'own'"
            )
        name = hash_of_files(card.files)[:_NAME_DIGITS]
        self._client.load(name, folder.absolute())
        return name

    def _unload_there(self, name: str) -> None:
        try:
            self._client.unload(name)
        except EngineError as error:
            _log.warning("%s: not unloaded: %s", name, error)


def vllm_pool(settings: ServiceSettings, models: ModelStore) -> VllmPool:
    """The pool of a service. Raises ConfigurationError where its base is not found, or there is no program of vLLM."""
    (name,) = settings.bases.values()
    base = resolve(name)
    if settings.vllm_url is not None:
        server: VllmServer = RunningVllm(settings.vllm_url, os.environ.get("VLLM_API_KEY"))
    else:
        server = VllmChild(
            base,
            settings.folder / "vllm.log",
            command=settings.vllm_command,
            rank=max([settings.training.rank, *_ranks(models)]),
            most_loaded=settings.max_loaded_models,
        )
    return VllmPool(server, most_loaded=settings.max_loaded_models)


def _ranks(models: ModelStore) -> Iterator[int]:
    """The ranks of the adapters that are there."""
    for model in models.list_models():
        if model.adapter is not None:
            with suppress(FinetuneStructuredError):  # a damaged one, which its first request is told of
                yield read_lora_config(model.adapter).r


def _keep() -> None:
    """The base is not unloaded."""
