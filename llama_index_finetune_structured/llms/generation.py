"""One loaded model that answers many callers: requests that wait together are generated in one batch."""

from __future__ import annotations

import inspect
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from transformers import DynamicCache

from .grammar import AnswerGrammar, GrammarRun, allocate_token_bitmask

__all__ = ["Answer", "Generator", "Request"]

_GATHER_S = 0.02
_WORTH_CACHING_TOKENS = 64


@dataclass(frozen=True)
class Answer:
    """Generated token ids, without the stop token, and why they ended: ``stop`` or ``length``."""

    tokens: tuple[int, ...]
    finish_reason: str


@dataclass
class Request:
    """One prompt to answer. ``on_token`` is called from the model's thread for each token."""

    prompt: tuple[int, ...]
    max_new_tokens: int
    temperature: float = 0.0
    grammar: AnswerGrammar | None = None
    on_token: Callable[[int], None] | None = None
    cancelled: bool = False
    answer: Future[Answer] = field(default_factory=Future)


class Generator:
    """A causal LM behind a queue. A thread runs while there is work, and ends when there is none."""

    def __init__(self, model: Any, *, stop_ids: Sequence[int], pad_id: int, batch_size: int) -> None:
        self.model, self.stop_ids, self.pad_id, self.batch_size = (
            model.eval(),
            set(stop_ids),
            pad_id,
            batch_size,
        )
        self._waiting: deque[Request] = deque()
        self._lock = threading.Lock()
        self._running = False
        self._prefix: tuple[tuple[int, ...], Any] = ((), None)
        self._last_prompt: tuple[int, ...] = ()
        self._reuses_prefixes = _attends_to_all(model.config)
        self._accepted = inspect.signature(model.forward).parameters

    def submit(self, request: Request) -> Future[Answer]:
        """Queue a request; its future ends with the answer, or with what went wrong."""
        with self._lock:
            self._waiting.append(request)
            if not self._running:
                self._running = True
                threading.Thread(target=self._work, name="local-model").start()
        return request.answer

    def _work(self) -> None:
        time.sleep(_GATHER_S)  # callers that start together shall share the first batch
        while batch := self._next_batch():
            try:
                self._generate(batch)
            except BaseException as error:
                for request in batch:
                    if not request.answer.done():
                        request.answer.set_exception(error)

    def _next_batch(self) -> list[Request]:
        with self._lock:
            batch: list[Request] = []
            for request in list(self._waiting):
                if len(batch) < self.batch_size and (
                    not batch or request.temperature == batch[0].temperature
                ):
                    self._waiting.remove(request)
                    if not request.cancelled:
                        batch.append(request)
            self._running = bool(batch)
            return batch

    @torch.inference_mode()
    def _generate(self, batch: list[Request]) -> None:
        """Answer a batch; rows that have ended leave it, so that the rest goes on faster."""
        rows = [_RowState(request, self.stop_ids) for request in batch]
        ids, mask, cache = self._inputs([request.prompt for request in batch])
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        while True:
            logits, cache = self._forward(ids, mask, positions, cache)
            tokens = self._choose(rows, logits)
            for row, token in zip(rows, tokens, strict=True):
                row.take(token)
            going = [n for n, row in enumerate(rows) if not row.ended]
            if not going:
                return
            if len(going) < len(rows):
                kept = torch.tensor(going, device=mask.device)
                rows, mask = [rows[n] for n in going], mask[kept]
                cache.batch_select_indices(kept)
            ids = torch.tensor([[tokens[n]] for n in going], device=mask.device)
            mask = torch.cat([mask, mask.new_ones(len(going), 1)], dim=1)
            positions = mask.sum(1, keepdim=True) - 1

    def _forward(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any
    ) -> tuple[torch.Tensor, Any]:
        """Logits [rows, vocabulary] of the next tokens, and the cache with these tokens in it."""
        asked = {"position_ids": positions, "logits_to_keep": 1}
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **{name: value for name, value in asked.items() if name in self._accepted},
        )
        return output.logits[:, -1].float(), output.past_key_values

    def _choose(self, rows: list[_RowState], logits: torch.Tensor) -> list[int]:
        """The next token of each row: allowed by its grammar, the likeliest or drawn at its temperature."""
        if any(row.run is not None for row in rows):
            logits = logits.masked_fill(~_allowed(rows, logits.shape[1]).to(logits.device), float("-inf"))
        tokens: list[int] = logits.argmax(-1).tolist()
        for n, row in enumerate(rows):
            if row.request.temperature > 0:
                weights = torch.softmax(logits[n] / row.request.temperature, dim=-1)
                tokens[n] = int(torch.multinomial(weights, 1))
        return tokens

    def _inputs(self, prompts: list[tuple[int, ...]]) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Token ids still to be read, attention mask, and the cache of what the prompts share.

        A row is the shared prefix, then padding, then the rest of its prompt.
        """
        among = prompts if len(prompts) > 1 else [*prompts, self._last_prompt]
        self._last_prompt = prompts[-1]
        shared = _common_prefix(among, self._prefix[0])
        cached = self._reuses_prefixes and len(shared) >= _WORTH_CACHING_TOKENS
        kept = len(shared) if cached else 0
        width = max(map(len, prompts)) - kept
        ids, mask = [], []
        for prompt in prompts:
            padding = width - (len(prompt) - kept)
            ids.append([*[self.pad_id] * padding, *prompt[kept:]])
            mask.append([1] * kept + [0] * padding + [1] * (len(prompt) - kept))
        device = self.model.device
        cache = self._prefix_cache(shared, len(prompts)) if cached else DynamicCache(config=self.model.config)
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device), cache

    def _prefix_cache(self, prefix: tuple[int, ...], rows: int) -> Any:
        if self._prefix[0] != prefix:
            ids = torch.tensor([prefix], device=self.model.device)
            positions = torch.arange(len(prefix), device=ids.device)[None]
            cache = DynamicCache(config=self.model.config)
            self._prefix = (prefix, self._forward(ids, torch.ones_like(ids), positions, cache)[1])
        copy = DynamicCache(config=self.model.config)
        for n, layer in enumerate(self._prefix[1].layers):
            copy.update(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1), n)
        return copy


class _RowState:
    """What one row of a batch has said so far."""

    def __init__(self, request: Request, stop_ids: set[int]) -> None:
        self.request, self._stop_ids = request, stop_ids
        self.tokens: list[int] = []
        self.stopped, self.ended = False, False
        self.run: GrammarRun | None = (
            request.grammar.start(request.max_new_tokens) if request.grammar is not None else None
        )

    def take(self, token: int) -> None:
        if self.ended:
            return
        if self.run is not None:
            self.run.take(token)
        if token in self._stop_ids:
            self.stopped = True
        else:
            self.tokens.append(token)
            if self.request.on_token is not None:
                self.request.on_token(token)
        if self.stopped or self.request.cancelled or len(self.tokens) >= self.request.max_new_tokens:
            self.finish()

    def finish(self) -> None:
        self.ended = True
        if not self.request.answer.done():
            self.request.answer.set_result(Answer(tuple(self.tokens), "stop" if self.stopped else "length"))


def _allowed(rows: list[_RowState], vocabulary: int) -> torch.Tensor:
    """Which tokens each row's grammar allows, as booleans; llguidance's own kernel would set off torch.compile."""
    mask = allocate_token_bitmask(len(rows), vocabulary)
    mask.fill_(-1)
    for n, row in enumerate(rows):
        if row.run is not None:
            row.run.fill(mask, n)
    bits = numpy.unpackbits(mask.numpy().view(numpy.uint8), axis=1, bitorder="little")
    return torch.from_numpy(bits[:, :vocabulary]).bool()


def _common_prefix(prompts: list[tuple[int, ...]], known: tuple[int, ...]) -> tuple[int, ...]:
    """What all prompts begin with, at most all but their last token; the known prefix if it is most of that."""
    first, last = min(prompts), max(prompts)
    limit = min(map(len, prompts)) - 1
    length = next((n for n in range(limit) if first[n] != last[n]), limit)
    if known and len(known) <= length <= 2 * len(known) and first[: len(known)] == known:
        return known
    return first[:length]


def _attends_to_all(config: Any) -> bool:
    """Whether every layer keeps every key: only such caches can be handed on."""
    return not getattr(config, "sliding_window", None) and all(
        kind == "full_attention" for kind in getattr(config, "layer_types", None) or ()
    )
