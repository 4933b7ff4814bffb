"""What ``LoraLLM`` needs of a model whose weights are in a vLLM server: tokenizer, grammars and an engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from transformers import GenerationConfig

from ...errors import ConfigurationError
from ...local.generate.loaded_models import CompiledRules, LocalModel
from ...local.model.base_models import BaseModelFiles, load_tokenizer, resolve, text_config, vocabulary_size
from ...local.model.stop_token import stop_token_id
from .client import VllmClient
from .engine import StopTokens, VllmEngine

__all__ = ["VllmBase", "VllmModel"]


class VllmBase:
    """The base model of a server: what all of its models share here, made once."""

    def __init__(self, base: str, client: VllmClient, loop: asyncio.AbstractEventLoop) -> None:
        """``loop``: the client's. Raises ConfigurationError where the base or its tokenizer is not read."""
        files = resolve(base)
        self.tokenizer = tokenizer = load_tokenizer(files)
        own = stop_token_id(tokenizer)
        if tokenizer.eos_token_id is None:
            raise ConfigurationError(
                f"{base}: its tokenizer has no eos_token, which vLLM's grammars end with: set it in "
                "tokenizer_config.json, or serve the model with the backend 'own'"
            )
        ids = {own, tokenizer.eos_token_id, *_ends_of(files)}
        self.stops = StopTokens(own, int(tokenizer.eos_token_id), tuple(sorted(ids)))
        vocabulary = max(vocabulary_size(files) or 0, len(tokenizer))
        self.compiled = CompiledRules(tokenizer, vocabulary, own, frozenset(ids))
        self._client, self._loop = client, loop

    def model(self, name: str, load: Callable[[], object]) -> VllmModel:
        """The model of that name at the server. ``load``: loads it there where it is not; it may wait."""

        async def loaded() -> None:
            await asyncio.to_thread(load)

        return VllmModel(self, VllmEngine(self._client, self._loop, name, stops=self.stops, load=loaded))


class VllmModel(LocalModel):
    """A model of a server in the place of one that is loaded here."""

    def __init__(self, base: VllmBase, engine: VllmEngine) -> None:
        self.tokenizer, self.stop_id, self.engine = base.tokenizer, base.stops.own, engine
        self._compiled = base.compiled


def _ends_of(base: BaseModelFiles) -> list[int]:
    """The tokens that end a text, as the base's files have them."""
    try:
        found: Any = GenerationConfig.from_pretrained(base.path).eos_token_id
    except OSError:  # there is no such file
        found = getattr(text_config(base), "eos_token_id", None)
    return [] if found is None else [int(one) for one in (found if isinstance(found, list) else [found])]
