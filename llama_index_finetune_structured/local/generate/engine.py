"""Generation engine: a queue of requests, answered together by one thread that runs the model."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import torch

from ..model.devices import release_idle_threads
from .decoders import BatchDecoder, PaddedDecoder
from .kv_cache import supports_kv_cache_slots
from .request import GenerationRequest, GenerationResult

__all__ = ["GenerationEngine"]

_logger = logging.getLogger(__name__)
_GATHER_S = 0.02  # chosen: concurrent callers submit within it; short beside an answer


class GenerationEngine:
    """A causal LM behind a queue. Its thread starts with the first request and ends when the queue is empty.

    ``stop_ids``: tokens that end an answer. ``pad_id``: padding for models without KV cache slots.
    ``batch_size``: most requests generated together.
    """

    def __init__(self, model: Any, *, stop_ids: Sequence[int], pad_id: int, batch_size: int) -> None:
        self.model, self.batch_size = model.eval(), batch_size
        self._decoder = _decoder(self.model, frozenset(stop_ids), pad_id)
        self._waiting: deque[GenerationRequest] = deque()
        self._lock = threading.Lock()
        self._running = False

    def submit(self, request: GenerationRequest) -> Future[GenerationResult]:
        """Queue a request. Its future ends with the result, or with the error that the model raised."""
        with self._lock:
            self._waiting.append(request)
            if not self._running:
                self._running = True
                release_idle_threads()
                # Not a daemon, explicitly, since threads inherit that from a daemon thread: a daemon that still
                # computes while Python shuts down aborts the process.
                threading.Thread(target=self._work, name="local-model", daemon=False).start()
        return request.future

    @torch.inference_mode()
    def _work(self) -> None:
        time.sleep(_GATHER_S)  # requests submitted together then share the first forwards
        while not self._is_done():
            self._join()
            self._step()

    def _is_done(self) -> bool:
        """Whether no work is left; the thread then ends, and the next request starts another."""
        if self._decoder.sequences:
            return False
        with self._lock:
            self._running = bool(self._waiting)
            if not self._running:
                self._decoder.clear()
            return not self._running

    def _join(self) -> None:
        """Let waiting requests join the batch, up to ``batch_size``."""
        while len(self._decoder.sequences) < self.batch_size and (request := self._next()) is not None:
            try:
                self._decoder.join(request)
            except BaseException as error:
                if not request.future.done():
                    request.future.set_exception(error)

    def _next(self) -> GenerationRequest | None:
        """The next waiting request that is not cancelled."""
        with self._lock:
            while self._waiting:
                request = self._waiting.popleft()
                if request.future.set_running_or_notify_cancel() and not request.cancelled:
                    return request
        return None

    def _step(self) -> None:
        sequences = self._decoder.sequences
        if not sequences:
            return
        try:
            self._decoder.step()
        except BaseException as error:
            for sequence in sequences:
                sequence.fail(error)
            self._decoder.clear()


@torch.inference_mode()
def _decoder(model: Any, stop_ids: frozenset[int], pad_id: int) -> BatchDecoder | PaddedDecoder:
    if supports_kv_cache_slots(model):
        return BatchDecoder(model, stop_ids)
    _logger.warning(
        "%s has state other than a standard KV cache: its answers are generated in padded batches, without "
        "prefix cache and speculative decoding",
        type(model).__name__,
    )
    return PaddedDecoder(model, stop_ids, pad_id)
