"""Generation engine: a queue of requests, answered together by one thread that runs the model."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any

import torch

from ...errors import EngineError
from ...forks import reset_after_fork
from ...printable import package_logger
from ..model.devices import release_idle_threads
from .decoders import BatchDecoder, PaddedDecoder
from .kv_cache import supports_kv_cache_slots
from .request import GenerationRequest, GenerationResult
from .waiting import WaitingRequests

__all__ = ["GenerationEngine"]

_logger = package_logger(__name__)
_GATHER_S = 0.02  # chosen: concurrent callers submit within it; short beside an answer


class _EngineThread(threading.Thread):
    """The thread of an engine, by its type distinct from threads that wait for answers."""


class GenerationEngine:
    """A causal LM behind a queue. Its thread starts with the first request and ends when the queue is empty.

    Every submitted request ends with an answer or an error, whatever fails. When the interpreter ends and no
    thread is left that could wait for an answer, the open requests end with an error. A forked child starts with
    an empty queue and empty caches.

    ``stop_ids``: tokens that end an answer. ``pad_id``: padding for models without KV cache slots.
    ``batch_size``: most requests generated together.
    """

    def __init__(self, model: Any, *, stop_ids: Sequence[int], pad_id: int, batch_size: int) -> None:
        self.model, self.batch_size = model.eval(), batch_size
        self._decoder = _decoder(self.model, frozenset(stop_ids), pad_id)
        self._reset_queue()
        reset_after_fork(self)

    def _reset_queue(self) -> None:
        self._waiting = WaitingRequests(self.batch_size)
        self._joining: GenerationRequest | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def after_fork(self) -> None:
        """Forget the parent's thread, perhaps in the middle of a forward; its requests end with an error here."""
        joining = [] if self._joining is None else [self._joining]
        for request in [
            *self._waiting,
            *joining,
            *(sequence.request for sequence in self._decoder.sequences),
        ]:
            request.future = Future()  # the parent's may be locked
            request.future.set_exception(
                EngineError(
                    "the process was forked during this answer, which goes on in the parent: ask again"
                )
            )
        self._reset_queue()
        self._decoder.reset()

    def submit(self, request: GenerationRequest) -> Future[GenerationResult]:
        """Queue a request. Its future ends with the result, or with the error that the model raised."""
        with self._lock:
            self._waiting.append(request)
            requests, failure = list[GenerationRequest](), None
            try:
                if self._thread is None or not self._thread.is_alive():
                    self._start()
            except BaseException as error:  # the system has no thread left
                requests, failure = self._taken_queue(), error
        if failure is not None:
            _fail(requests, failure)
        return request.future

    def _start(self) -> None:
        release_idle_threads()
        # Not a daemon, explicitly, since threads inherit that from a daemon thread: a daemon that still computes
        # while Python shuts down aborts the process.
        thread = _EngineThread(target=self._work, name="local-model", daemon=False)
        thread.start()
        self._thread = thread

    def _work(self) -> None:
        failure: BaseException = RuntimeError("the thread that runs the model ended")
        try:
            self._answer_all()
        except BaseException as error:
            failure = error
        finally:
            self._end(failure)

    def _end(self, failure: BaseException) -> None:
        """Fail the open requests where the thread's loop itself failed.

        Where it ended in order, another thread may already answer later requests.
        """
        requests = list[GenerationRequest]()
        with self._lock:
            if self._thread is threading.current_thread():
                self._thread, requests = None, self._taken_batch() + self._taken_queue()
        _fail(requests, failure)

    @torch.inference_mode()
    def _answer_all(self) -> None:
        time.sleep(_GATHER_S)  # requests submitted together then share the first forwards
        while not self._is_done():
            try:
                if _nobody_waits():
                    raise RuntimeError("the interpreter is shutting down: the answer was not generated")
                self._join()
                self._step()
            except BaseException as error:
                _fail(self._taken_batch() + self._taken_queue(), error)

    def _is_done(self) -> bool:
        """Whether no work is left; the thread then ends, and the next request starts another."""
        if self._decoder.sequences:
            return False
        with self._lock:
            if self._waiting:
                return False
            self._thread = None
            self._clear()
            return True

    def _join(self) -> None:
        """Let waiting requests join the batch, up to ``batch_size``.

        Where adapters cannot share a batch, one that begins is filled with requests of one adapter past the others;
        then they keep their order, so that no adapter waits for ever.
        """
        begins = not self._decoder.sequences
        while len(self._decoder.sequences) < self.batch_size:
            if (request := self._next(past=begins)) is None:
                return
            try:
                self._decoder.join(request)
            except BaseException as error:
                _fail([request], error)
            self._joining = None

    def _next(self, *, past: bool) -> GenerationRequest | None:
        """The next waiting request that is not cancelled and can join; ``past`` as in ``WaitingRequests.pop``."""
        with self._lock:
            while (request := self._waiting.pop(self._decoder.takes, past=past)) is not None:
                if request.cancelled:
                    request.future.cancel()
                if request.future.set_running_or_notify_cancel():
                    self._joining = request
                    return request
        return None

    def _step(self) -> None:
        if self._decoder.sequences:
            try:
                self._decoder.step()
            except BaseException as error:
                _fail(self._taken_batch(), error)

    def _taken_batch(self) -> list[GenerationRequest]:
        """The requests of the batch and the one that is about to join it, none of which is continued."""
        requests = [sequence.request for sequence in self._decoder.sequences]
        if self._joining is not None:
            requests.append(self._joining)
        self._joining = None
        self._clear()
        return requests

    def _taken_queue(self) -> list[GenerationRequest]:
        """The waiting requests, removed from the queue."""
        requests = list[GenerationRequest]()
        while self._waiting:
            requests.append(self._waiting.popleft())
        return requests

    def drop_unloaded(self) -> None:
        """Free what is kept for adapters that no longer exist. While the engine generates, it does so itself."""
        with self._lock:
            if self._thread is None:
                self._clear()

    def _clear(self) -> None:
        """Drop all sequences. Failing to free their memory is no reason to fail a later request."""
        try:
            self._decoder.clear()
        except BaseException:
            _logger.warning("the KV cache could not be freed; it is rebuilt", exc_info=True)
            self._decoder.reset()


def _fail(requests: Sequence[GenerationRequest], error: BaseException) -> None:
    """End requests with an error, those excepted that have ended. Runs their callbacks: not with a lock held."""
    for request in requests:
        with contextlib.suppress(InvalidStateError):
            request.future.set_exception(error)


def _nobody_waits() -> bool:
    """Whether the interpreter ends and only engines keep it from doing so: daemon threads end with it."""
    if threading.main_thread().is_alive():
        return False
    return not any(
        thread.is_alive() and not thread.daemon and not isinstance(thread, _EngineThread)
        for thread in threading.enumerate()
    )


@torch.inference_mode()
def _decoder(model: Any, stop_ids: frozenset[int], pad_id: int) -> BatchDecoder | PaddedDecoder:
    if supports_kv_cache_slots(model):
        return BatchDecoder(model, stop_ids)
    _logger.warning(
        "%s has state other than a standard KV cache, or positions that depend on length: its answers are generated "
        "in padded batches, without prefix cache and speculative decoding",
        type(model).__name__,
    )
    return PaddedDecoder(model, stop_ids, pad_id)
