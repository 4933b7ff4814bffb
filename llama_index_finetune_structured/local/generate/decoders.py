"""Batch decoders: continuous batching with speculative decoding, and padded batches through ``generate``."""

from __future__ import annotations

from collections.abc import Set
from functools import partial
from itertools import islice
from typing import Any

import torch
from transformers import LogitsProcessorList

from ...printable import package_logger
from ..model.devices import devices_of
from ..model.rope import most_positions_alike
from .adapter_layers import AdapterLayers
from .kv_cache import KeyValues, KVCacheModel
from .position_logits import NO_TOKEN, PositionLogits, position_logits
from .prefix_cache import PrefixCache, prefix_cache_bytes
from .request import GenerationRequest
from .sequence import GeneratedSequence

__all__ = ["BatchDecoder", "PaddedDecoder"]

_logger = package_logger(__name__)


class BatchDecoder:
    """Continuous batching: sequences join and leave between forwards, and each forward verifies draft tokens.

    Greedy answers equal those of plain greedy decoding, token by token, where no others are searched. ``sequences``:
    those that have not ended; the index of a sequence is its KV cache slot.
    """

    def __init__(self, model: Any, stop_ids: Set[int]) -> None:
        self._model, self._stop_ids = KVCacheModel(model), stop_ids
        self._prefix_bytes = prefix_cache_bytes(devices_of(model))
        self._prefixes = PrefixCache(self._prefix_bytes)
        self.sequences: list[GeneratedSequence] = []

    def takes(self, request: GenerationRequest) -> bool:
        """Whether a request can be in one batch with those of now: not where an adapter needs a batch of its own."""
        adapters = {request.adapter, *(sequence.request.adapter for sequence in self.sequences)}
        return len(adapters) == 1 or all(adapter is None or adapter.rows for adapter in adapters)

    def join(self, request: GenerationRequest) -> None:
        """Prefill the prompt, reusing cached prefixes, and choose the first token of the answer.

        Raises EngineError where the prompt's logits are not finite; the prompt is then not cached.
        """
        sequence, slot = GeneratedSequence(request, self._stop_ids), len(self.sequences)
        try:
            cached = self._model.load(slot, self._cached_parts(request))
            logits = self._model.prefill(slot, request.prompt, cached, request.adapter)
            (scores,) = position_logits(logits[None], near=sequence.wants_near)
            token = sequence.choose(scores)
        except Exception:
            self._model.erase(slot)
            raise
        self._cache_prompt(request, slot)
        sequence.length = len(request.prompt)
        sequence.append(token)
        if not sequence.ended:
            self.sequences.append(sequence)

    def _cached_parts(self, request: GenerationRequest) -> list[KeyValues]:
        try:
            return self._prefixes.find(request.prompt, request.adapter)
        except Exception:
            self._forget_prefixes()
            return []

    def _cache_prompt(self, request: GenerationRequest, slot: int) -> None:
        try:
            self._prefixes.add(
                request.prompt, lambda start, stop: self._model.save(slot, start, stop), request.adapter
            )
        except Exception:
            self._forget_prefixes()

    def _forget_prefixes(self) -> None:
        """Start an empty prefix cache: it saves time only, so its failure is no reason to fail a request."""
        _logger.warning("the prefix cache failed and was emptied", exc_info=True)
        self._prefixes = PrefixCache(self._prefix_bytes)

    def step(self) -> None:
        """Run one forward for all sequences; each gets at least one more token.

        Where a sequence's own grammar or sampling fails, that sequence ends with the error and the others go on.
        """
        drafts = [_draft(sequence) for sequence in self.sequences]
        inputs = [[*sequence.pending, *draft] for sequence, draft in zip(self.sequences, drafts, strict=True)]
        logits, slots = self._model.extend(
            inputs,
            [sequence.length for sequence in self.sequences],
            [sequence.request.adapter for sequence in self.sequences],
        )
        near = any(sequence.wants_near for sequence in self.sequences)
        every = iter(position_logits(logits, near=near))
        for slot in slots:
            sequence, draft = self.sequences[slot], drafts[slot]
            scores = list(islice(every, len(inputs[slot])))[-1 - len(draft) :]
            try:
                if (
                    draft and scores[0].likeliest == NO_TOKEN
                ):  # NaN spreads to the tokens before it: try again without the draft
                    self._model.erase(slot, sequence.length)
                    sequence.drafts = False
                else:
                    sequence.length += len(inputs[slot]) - len(scores)
                    _verify(sequence, draft, scores)
            except Exception as error:
                sequence.fail(error)
        self._remove_ended()

    def clear(self) -> None:
        """Drop all sequences and free their KV cache; the prefix cache stays, that of unloaded adapters excepted."""
        self.sequences = []
        self._model.release()
        self._prefixes.drop_unloaded()

    def reset(self) -> None:
        """Drop all sequences and both caches, whatever state they are in."""
        self.sequences, self._prefixes = [], PrefixCache(self._prefix_bytes)
        self._model.reset()

    def _remove_ended(self) -> None:
        """Remove ended sequences, and fill their slots from the end, because ``extend`` uses slots 0, 1, 2, ..."""
        for slot in reversed(range(len(self.sequences))):
            if self.sequences[slot].ended:
                if self.sequences[slot].failed:
                    self._model.erase(slot)
                last = self.sequences.pop()
                if slot < len(self.sequences):
                    self._model.move(len(self.sequences), slot)
                    self.sequences[slot] = last


def _draft(sequence: GeneratedSequence) -> list[int]:
    """The sequence's draft tokens. Without them it is slower, not wrong: none where they cannot be had."""
    try:
        return sequence.draft()
    except Exception:
        _logger.warning("no draft tokens", exc_info=True)
        return []


def _verify(sequence: GeneratedSequence, draft: list[int], scores: list[PositionLogits]) -> None:
    """Append the model's own tokens for as long as they equal the draft, and one more.

    ``scores``: after the last token of the answer and after each draft token.
    """
    for position, drafted in enumerate([*draft, None]):
        sequence.length += 1
        token = sequence.choose(scores[position])
        if not sequence.append(token) or token != drafted:
            return


class PaddedDecoder:
    """Left-padded batches through transformers' ``generate``, each finished before the next begins.

    For models with more state than keys and values, and those whose keys depend on the sequence's length. Same
    interface as ``BatchDecoder``. Answers are greedy: nothing goes back to an earlier token.
    """

    def __init__(self, model: Any, stop_ids: Set[int], pad_id: int) -> None:
        self._model, self._stop_ids, self._pad_id = model, stop_ids, pad_id
        self._together = most_positions_alike(model.config)
        self._adapters = AdapterLayers(model)
        self.sequences: list[GeneratedSequence] = []

    def takes(self, _request: GenerationRequest) -> bool:
        """As of ``BatchDecoder``; the requests of a step are grouped by adapter."""
        return True

    def join(self, request: GenerationRequest) -> None:
        """Add a request to the next batch."""
        self.sequences.append(GeneratedSequence(request, self._stop_ids, searches=False))

    def step(self) -> None:
        """Generate the answers of all sequences to their end."""
        while self.sequences:
            group = self._next_group()
            self._generate(group)
            self.sequences = [sequence for sequence in self.sequences if sequence not in group]

    def _next_group(self) -> list[GeneratedSequence]:
        """The next batch, of one adapter; of sequences whose length decides what is computed, one at a time."""
        first = self.sequences[0].request.adapter
        alike = [sequence for sequence in self.sequences if sequence.request.adapter is first]
        if self._together is None:
            return alike
        lengths = [len(s.request.prompt) + s.request.max_new_tokens for s in alike]
        short = [s for s, length in zip(alike, lengths, strict=True) if length <= self._together]
        return short or alike[:1]

    def _generate(self, group: list[GeneratedSequence]) -> None:
        requests = [sequence.request for sequence in group]
        width = max(len(request.prompt) for request in requests)
        padding = [width - len(request.prompt) for request in requests]
        ids = [[self._pad_id] * n + [*request.prompt] for n, request in zip(padding, requests, strict=True)]
        mask = [[0] * n + [1] * (width - n) for n in padding]
        self._adapters.use([(requests[0].adapter, width * len(requests))])
        self._model.generate(
            input_ids=torch.tensor(ids, device=self._model.device),
            attention_mask=torch.tensor(mask, device=self._model.device),
            logits_processor=LogitsProcessorList([partial(self._choose, group)]),
            max_new_tokens=max(request.most_tokens for request in requests),
            do_sample=False,
            eos_token_id=sorted(self._stop_ids),
            pad_token_id=self._pad_id,
        )

    def clear(self) -> None:
        """Drop all sequences."""
        self.sequences = []
        self._adapters.use([])

    reset = clear

    def _choose(
        self, group: list[GeneratedSequence], _ids: torch.Tensor, scores: torch.Tensor
    ) -> torch.Tensor:
        """Logits processor that lets each sequence choose its token: all others get minus infinity.

        ``scores``: [sequences, tokens of the vocabulary], as the result. Ended sequences get a stop token.
        """
        near = any(sequence.wants_near for sequence in group)
        found = position_logits(scores, near=near)
        chosen = [self._next_token(*each) for each in zip(group, found, strict=True)]
        only_chosen = torch.full_like(scores, float("-inf"))
        return only_chosen.scatter_(1, torch.tensor(chosen, device=scores.device)[:, None], 0.0)

    def _next_token(self, sequence: GeneratedSequence, scores: PositionLogits) -> int:
        """Choose and append a sequence's token by its scores; a stop token once it has ended or failed."""
        if not sequence.ended:
            try:
                token = sequence.choose(scores)
                sequence.append(token)
                return token
            except Exception as error:
                sequence.fail(error)
        return min(self._stop_ids)
