"""Places for calls that are answered at a time, and the queue for them: bounded in length and time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import anyio

from ..llms.lora import LoraLLM
from .errors import ApiError
from .models import ServedModel
from .pool import ModelPool

__all__ = ["CallQueue"]

_LONGEST_RETRY_S = 60  # chosen: the longest that OpenAI's SDK waits because a server asks it to


class CallQueue:
    """The calls of a process, of which ``most_answered`` are answered at a time and ``most_waiting`` wait.

    Models batch the calls that are answered, each at most its ``batch_size``. Used by one event loop.
    """

    def __init__(
        self, pool: ModelPool, *, most_answered: int = 32, most_waiting: int = 256, wait_s: float = 120.0
    ) -> None:
        """``wait_s``: how long a call may wait, for its place and its model together."""
        self._pool, self._places = pool, anyio.Semaphore(most_answered)
        self._most_answered, self._most_waiting, self._wait_s = most_answered, most_waiting, wait_s
        self._answer_s = 1.0  # a moving average
        self.waiting = self.answered = 0

    async def enter(self, stack: ExitStack, model: ServedModel) -> LoraLLM:
        """Wait for a place and for the model, which ``stack`` gives back.

        Raises ApiError: 429 where too many calls wait already, 503 after ``wait_s``, 500 where the model cannot be
        loaded; both with the header Retry-After.
        """
        if self.waiting >= self._most_waiting:
            raise self._busy(429, f"{self.waiting} calls wait already, the most that may", "too_many_waiting")
        self.waiting += 1
        try:
            with anyio.fail_after(self._wait_s):
                await self._places.acquire()
                stack.callback(self._places.release)
                llm = stack.enter_context(await self._pool.lease(model))
        except TimeoutError:
            message = f"no place was free for {model.name!r} within {self._wait_s:g} seconds"
            raise self._busy(503, message, "queue_timeout") from None
        finally:
            self.waiting -= 1
        stack.enter_context(self._timed())
        return llm

    @contextmanager
    def _timed(self) -> Iterator[None]:
        begun = time.monotonic()
        self.answered += 1
        try:
            yield
        finally:
            self.answered -= 1
            self._answer_s += (time.monotonic() - begun - self._answer_s) / 16

    def _busy(self, status: int, why: str, code: str) -> ApiError:
        until_free = math.ceil(self._answer_s * (1 + self.waiting / self._most_answered))
        seconds = min(_LONGEST_RETRY_S, max(1, until_free))
        return ApiError(
            status,
            f"The server is busy: {why}. Try again in {seconds} seconds.",
            code=code,
            headers={"Retry-After": str(seconds)},
        )
