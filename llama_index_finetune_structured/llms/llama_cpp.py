"""llama.cpp server for GGUF files, inside this process: OpenAI's protocol on loopback."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError, MissingDependencyError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LlamaCppServer"]

_SILENT = -1  # llama.cpp's verbosity below its errors


class LlamaCppServer:
    """llama.cpp's server for a GGUF file, running inside a ``with`` block.

    ``with LlamaCppServer("model.gguf") as server: served_llm(adapter, **server.connection)``. Needs the extra
    ``llamacpp`` (a prebuilt wheel of llama.cpp).

    Args:
        model: The GGUF file.
        lora: A GGUF adapter on top of ``model``.
        context: Tokens of prompt and answer together, for one call. None: the model's own.
        slots: Calls answered together.
        threads: CPU threads. None: llama.cpp's default.

    Raises:
        ConfigurationError: A file is missing or, on entering the block, cannot be loaded.
        MissingDependencyError: On entering the block, the extra ``llamacpp`` is not installed.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        lora: str | Path | None = None,
        context: int | None = None,
        slots: int = 2,
        threads: int | None = None,
    ) -> None:
        self.model, self.lora = Path(model), None if lora is None else Path(lora)
        for path in (self.model, self.lora):
            if path is not None and not os.path.isfile(path):
                raise ConfigurationError(
                    f"{path}: no such GGUF file; export_adapter(..., format='gguf') makes one"
                )
        self.context, self.slots, self.threads = context, slots, threads
        self._key = secrets.token_urlsafe()
        self._server: Any = None

    def __enter__(self) -> Self:
        try:
            import xllamacpp
        except ImportError as error:
            raise MissingDependencyError("xllamacpp", "llamacpp", "Running a GGUF file") from error
        try:
            self._server = xllamacpp.Server(self._parameters(xllamacpp))
        except RuntimeError as error:
            raise ConfigurationError(f"llama.cpp does not load {self.model}: {error}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._server = None  # its destructor stops the threads and frees the weights

    @property
    def connection(self) -> dict[str, Any]:
        """``model``, ``api_base`` and ``api_key`` of the running server, the keywords of ``served_llm``.

        Raises:
            ConfigurationError: The server is not running.
        """
        if self._server is None:
            raise ConfigurationError("the llama.cpp server is not running: use it in a with block")
        return {
            "model": self.model.stem,
            "api_base": f"{self._server.listening_address}/v1",
            "api_key": self._key,
        }

    def _parameters(self, library: Any) -> Any:
        parameters = library.CommonParams()
        parameters.model.path = str(self.model)
        parameters.model_alias = {self.model.stem}
        parameters.port = 0
        parameters.n_parallel = self.slots
        parameters.n_ctx = (self.context or 0) * self.slots
        parameters.kv_unified = self.context is None
        parameters.verbosity = _SILENT
        parameters.api_keys = [self._key]
        if self.threads is not None:
            parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = self.threads
        if self.lora is not None:
            parameters.lora_adapters = [library.CommonAdapterLoraInfo(str(self.lora), 1.0)]
        return parameters
