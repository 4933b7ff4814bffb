"""Loaded local models, shared by every LLM object of this process that asks for the same weights."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch

from ..model.adapter import merge_adapter, read_matching_card
from ..model.base_models import BaseModelFiles, load_model, load_tokenizer, resolve
from ..model.devices import precision
from ..model.prompts import stop_token_id
from ..schema.bounds import AnswerBounds, bounded_schema
from .engine import Generator
from .grammar import AnswerGrammar, GrammarCache

__all__ = ["LocalModel", "load"]

_loaded: WeakValueDictionary[tuple[str, str, int], LocalModel] = WeakValueDictionary()
_loading = threading.Lock()


class LocalModel:
    """Tokenizer, generator and grammars of one set of weights; copies of it are itself."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int) -> None:
        self.tokenizer = tokenizer
        self.stop_id = stop_token_id(tokenizer)
        stops = {
            self.stop_id,
            *_as_list(tokenizer.eos_token_id),
            *_as_list(model.generation_config.eos_token_id),
        }
        pad = tokenizer.pad_token_id
        self.generator = Generator(
            model, stop_ids=sorted(stops), pad_id=self.stop_id if pad is None else pad, batch_size=batch_size
        )
        self._vocabulary = int(model.get_output_embeddings().weight.shape[0])
        self._grammars: GrammarCache | None = None
        self._making = threading.Lock()

    def grammar(self, schema: Mapping[str, Any], key: str, bounds: AnswerBounds) -> AnswerGrammar | None:
        """A schema's compiled grammar with the bounds of ``key``, kept for the next call; None where it has none."""
        with self._making:
            if self._grammars is None:
                self._grammars = GrammarCache(
                    self.tokenizer, vocabulary=self._vocabulary, stop_id=self.stop_id
                )
        bounded = bounded_schema(schema, key, bounds)
        return self._grammars.get(bounded, distinct=key in bounds.distinct)

    def __deepcopy__(self, _memo: Any) -> LocalModel:
        return self


def load(base_model: str, adapter: Path | None, batch_size: int) -> LocalModel:
    """Load a base model, and merge an adapter into it. Raises ConfigurationError for an adapter of another base."""
    base = resolve(base_model)
    key = (base.sha256, _mark(adapter), batch_size)
    with _loading:
        found = _loaded.get(key)
        if found is None:
            found = _loaded[key] = LocalModel(_weights(base, adapter), load_tokenizer(base), batch_size)
    return found


def _weights(base: BaseModelFiles, adapter: Path | None) -> Any:
    if adapter is None:
        return load_model(base, dtype=precision())
    read_matching_card(adapter, base)
    # Merged in fp32: in bf16 small updates would be rounded away.
    model = load_model(base, dtype=torch.float32)
    return merge_adapter(model, adapter).to(precision())


def _mark(adapter: Path | None) -> str:
    return (
        ""
        if adapter is None
        else f"{adapter.resolve()}:{(adapter / 'adapter_model.safetensors').stat().st_mtime_ns}"
    )


def _as_list(value: Any) -> list[int]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [int(value)]
