"""Loaded local models: one for each set of weights in a process, shared by the LLM objects that use it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from ...forks import ForkSafeLock, reset_after_fork
from ..model.adapter import attach_adapter, merge_adapter, read_matching_card
from ..model.adapter_weights import AdapterWeights
from ..model.base_files import hash_of_files
from ..model.base_models import (
    BaseModelFiles,
    holds_quantized_weights,
    load_model,
    load_tokenizer,
    resolve,
)
from ..model.devices import chosen_device, precision
from ..model.prompts import DEFAULT_FORM, PromptForm
from ..model.quantization import Quantization
from ..model.reading import reading
from ..model.stop_token import stop_token_id
from ..schema.bounds import AnswerBounds
from .answer_grammar import answer_grammar
from .engine import GenerationEngine
from .grammar import AnswerGrammar, GrammarCache
from .reasoning import ReasoningRules

__all__ = ["AdaptedModel", "CompiledRules", "LocalModel", "load_local_model"]

_loading = ForkSafeLock()


class LocalModel:
    """Tokenizer, generation engine and compiled grammars of one set of weights. A deep copy is the same object."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int) -> None:
        self.tokenizer = tokenizer
        self.stop_id = stop_token_id(tokenizer)
        stops = {
            self.stop_id,
            *_as_list(tokenizer.eos_token_id),
            *_as_list(model.generation_config.eos_token_id),
        }
        pad = tokenizer.pad_token_id
        self.engine = GenerationEngine(
            model, stop_ids=sorted(stops), pad_id=self.stop_id if pad is None else pad, batch_size=batch_size
        )
        vocabulary = int(model.get_output_embeddings().weight.shape[0])
        self._compiled = CompiledRules(tokenizer, vocabulary, self.stop_id, frozenset(stops))

    @property
    def adapter(self) -> AdapterWeights | None:
        """What requests add to the weights as they were loaded, which may have an adapter merged into them."""
        return None

    def grammar(
        self, schema: Mapping[str, Any], key: str, bounds: AnswerBounds, form: PromptForm = DEFAULT_FORM
    ) -> AnswerGrammar:
        """As ``answer_grammar``, with the cache of this model."""
        return answer_grammar(self._compiled.grammars, self.tokenizer, schema, key, bounds, form)

    def token_texts(self, tokens: Sequence[int]) -> list[bytes]:
        """The text of each token, in UTF-8. Raises ConfigurationError where llguidance cannot read the tokenizer."""
        cache = self._compiled.grammars
        return [cache.written([token]) for token in tokens]

    @property
    def reasoning(self) -> ReasoningRules:
        """How reasoning is written before answers.

        Raises DatasetError where the chat template leaves no place for it, ConfigurationError as ``token_texts``.
        """
        return self._compiled.reasoning

    def __deepcopy__(self, _memo: Any) -> LocalModel:
        return self


class AdaptedModel(LocalModel):
    """A loaded base with one of several adapters beside it: all but the adapter is that of the base.

    ``find``: gives the adapter's weights, loaded again where they are not in memory.
    """

    def __init__(self, base: LocalModel, find: Callable[[], AdapterWeights]) -> None:
        self.tokenizer, self.stop_id, self.engine = base.tokenizer, base.stop_id, base.engine
        self._compiled, self._find = base._compiled, find

    @property
    def adapter(self) -> AdapterWeights:
        """The adapter's weights. Raises ConfigurationError where they have to be loaded and cannot be."""
        return self._find()


class CompiledRules:
    """What is made of a tokenizer once, on first use: grammars, and the rules of reasoning."""

    def __init__(self, tokenizer: Any, vocabulary: int, stop_id: int, stops: frozenset[int]) -> None:
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._stop_id, self._stops = stop_id, stops
        self.after_fork()
        reset_after_fork(self)

    def after_fork(self) -> None:
        """Forget the compiled grammars: the parent's thread may hold locks inside them, or the lock of the cache."""
        self._grammars: GrammarCache | None = None
        self._reasoning: ReasoningRules | None = None
        self._creating = threading.Lock()

    @property
    def grammars(self) -> GrammarCache:
        with self._creating:
            if self._grammars is None:
                self._grammars = GrammarCache(
                    self._tokenizer, vocabulary=self._vocabulary, stop_id=self._stop_id
                )
            return self._grammars

    @property
    def reasoning(self) -> ReasoningRules:
        cache = self.grammars
        with self._creating:
            if self._reasoning is None:
                self._reasoning = ReasoningRules(self._tokenizer, cache, self._stops)
            return self._reasoning


# The models of this process, by content of base and adapter, batch size, quantisation and device.
_loaded: WeakValueDictionary[tuple[str, str, int, str | None, str], LocalModel] = WeakValueDictionary()


def load_local_model(
    base_model: str,
    adapter: Path | None,
    batch_size: int,
    quantization: Quantization | None = None,
    device: str | None = None,
) -> LocalModel:
    """Load a base model and merge an adapter into it, or return the loaded one of the same content.

    ``base_model``: name, folder, .gguf file or hub id. ``batch_size``: most requests generated together; models
    loaded with another one are not shared. ``quantization``: of the base's layers, which an adapter then stands
    beside. ``device``: as of ``chosen_device``. Raises ConfigurationError for an adapter of another base, or where
    there is no such device.
    """
    base, place = resolve(base_model), chosen_device(device)
    files = {} if adapter is None else read_matching_card(adapter, base).files
    key = (base.sha256, hash_of_files(files), batch_size, quantization, place)
    with _loading:
        model = _loaded.get(key)
        if model is None:
            weights, tokenizer = _weights(base, adapter, quantization, place), load_tokenizer(base)
            with reading(f"base model {base.name!r} cannot be served", "Use another base model"):
                model = _loaded[key] = LocalModel(weights, tokenizer, batch_size)
    return model


def _weights(
    base: BaseModelFiles,
    adapter: Path | None,
    quantization: Quantization | None = None,
    device: str | None = None,
) -> Any:
    model = load_model(base, dtype=precision(device), quantization=quantization, device=device)
    if adapter is None:
        return model
    if quantization is None and not holds_quantized_weights(base):
        return merge_adapter(model, adapter)
    from ..train.fused_linear import fuse_lora

    tuned = attach_adapter(model, adapter)  # merged, the sums would have to be quantised again
    fuse_lora(tuned)
    return tuned.get_base_model()


def _as_list(value: Any) -> list[int]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [int(value)]
