"""One loaded model that answers many callers: requests that wait together are answered together."""

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
from .decoders import SlotDecoder
from .kv_cache import can_use_slots
from .plain_decoder import PlainDecoder
from .request import Answer, Request

__all__ = ["Generator"]

_logger = logging.getLogger(__name__)
_GATHER_S = 0.02


class Generator:
    """A causal LM behind a queue. A thread runs while there is work, and ends when there is none."""

    def __init__(self, model: Any, *, stop_ids: Sequence[int], pad_id: int, batch_size: int) -> None:
        self.model, self.batch_size = model.eval(), batch_size
        self._decoder = _decoder(self.model, frozenset(stop_ids), pad_id)
        self._waiting: deque[Request] = deque()
        self._lock = threading.Lock()
        self._running = False

    def submit(self, request: Request) -> Future[Answer]:
        """Queue a request; its future ends with the answer, or with what went wrong."""
        with self._lock:
            self._waiting.append(request)
            if not self._running:
                self._running = True
                release_idle_threads()
                # never a daemon, as threads of a daemon are: one that computes while Python ends aborts the process
                threading.Thread(target=self._work, name="local-model", daemon=False).start()
        return request.answer

    @torch.inference_mode()
    def _work(self) -> None:
        time.sleep(_GATHER_S)  # callers that start together shall share the first forwards
        while not self._rests():
            self._join()
            self._step()

    def _rests(self) -> bool:
        """Whether there is nothing left to do; the next request then starts a thread of its own."""
        if self._decoder.rows:
            return False
        with self._lock:
            self._running = bool(self._waiting)
            if not self._running:
                self._decoder.clear()
            return not self._running

    def _join(self) -> None:
        while len(self._decoder.rows) < self.batch_size and (request := self._next()) is not None:
            try:
                self._decoder.join(request)
            except BaseException as error:
                if not request.answer.done():
                    request.answer.set_exception(error)

    def _next(self) -> Request | None:
        with self._lock:
            while self._waiting:
                request = self._waiting.popleft()
                if request.answer.set_running_or_notify_cancel() and not request.cancelled:
                    return request
        return None

    def _step(self) -> None:
        rows = self._decoder.rows
        if not rows:
            return
        try:
            self._decoder.step()
        except BaseException as error:
            for row in rows:
                row.fail(error)
            self._decoder.clear()


@torch.inference_mode()
def _decoder(model: Any, stop_ids: frozenset[int], pad_id: int) -> SlotDecoder | PlainDecoder:
    if can_use_slots(model):
        return SlotDecoder(model, stop_ids)
    _logger.warning(
        "%s keeps more than keys and values, or does not follow their layout: its answers are generated "
        "batch by batch, without reuse of prefixes",
        type(model).__name__,
    )
    return PlainDecoder(model, stop_ids, pad_id)
