"""Run LLM calls concurrently with retries, and store every result so that a killed run can be resumed.

Results are rows of JSONL keyed by a content hash of the call's input, appended by the crash-safe store that
captures use: calls with a stored result are never made again, and a crash loses at most those in progress.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from ...capture.error_text import error_text
from ...errors import DatasetError
from ...jsonl import parse_line
from ...jsonl_store import JsonlStore, read_shards
from ...progress_bar import progress_bar

__all__ = ["CallPolicy", "FailedCall", "LlmCall", "LlmCalls"]

# Request timeout, conflict, too early, too many requests: those that OpenAI's SDK retries, and 425 (RFC 8470).
_RETRYABLE_STATUS = {408, 409, 425, 429}
# By name, with those of the base classes: the SDKs (openai, httpx) need not be installed.
_RETRYABLE_ERRORS = {"ConnectionError", "TimeoutError", "APIConnectionError", "TransportError"}
_MAX_BACKOFF_S = 60  # chosen: rate limits are by the minute
_MESSAGE_CHARACTERS = 500  # chosen: of an error's message that is stored; some contain the whole request


class CallPolicy(BaseModel):
    """Limits of the LLM calls: concurrency and retries.

    Lost connections, timeouts, rate limits and server errors are retried with random exponential backoff, a
    minute at most; other errors are final. Give the LLM itself ``max_retries=0``:
    its retries would multiply with these.

    Attributes:
        concurrency: Most calls in progress at a time, 1 or more.
        attempts: Most attempts per call, the first included, 1 or more.
        backoff_s: Limit of the first random wait, in seconds; it doubles with every attempt. 0: no wait.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    concurrency: int = Field(default=8, gt=0)
    attempts: int = Field(default=4, gt=0)
    backoff_s: float = Field(default=0.5, ge=0)


@dataclass(frozen=True)
class FailedCall:
    """A call without a result.

    Attributes:
        subject: What it was about: the question, or the chunk's id.
        error: Type of the last error.
        message: Message of the last error with secrets removed, cut at 500 characters.
        attempts: Number of attempts made.
    """

    subject: str
    error: str
    message: str
    attempts: int


@dataclass(frozen=True)
class LlmCall:
    """One call of ``system``, an LLM or a query engine, whose keys are left out of the errors that are stored.

    ``subject`` names the call in failures; ``metadata`` is stored beside its result.
    """

    system: Any
    subject: str
    metadata: Mapping[str, Any]
    make: Callable[[], Awaitable[dict[str, Any]]]


class LlmCalls:
    """Makes calls of one kind and stores their results in one file (``path`` None: in memory only).

    ``paid`` counts the attempts made by this object; ``rows`` maps a call's key to its newest row, which has a
    "result" or an "error".
    """

    def __init__(self, path: str | os.PathLike[str] | None, policy: CallPolicy) -> None:
        self._store = None if path is None else JsonlStore(path)
        self._policy = policy
        self.rows = {} if path is None or not Path(path).exists() else _read_rows(Path(path))
        self.paid = 0

    def count_results(self, calls: Mapping[str, LlmCall]) -> int:
        """How many of ``calls`` have a stored result; a failure is none."""
        return sum("result" in self.rows.get(key, {}) for key in calls)

    async def run(
        self,
        calls: Mapping[str, LlmCall],
        *,
        retry_failed: bool,
        description: str,
        show_progress: bool,
        outdated: Set[str] = frozenset(),
    ) -> None:
        """Make the calls whose key has no row or is ``outdated``; with ``retry_failed`` also those that failed."""
        missing = {
            key: call
            for key, call in calls.items()
            if key not in self.rows or key in outdated or (retry_failed and "error" in self.rows[key])
        }
        pending = iter(missing.items())
        done = len(calls) - len(missing)
        store = contextlib.closing(self._store) if self._store else contextlib.nullcontext()
        with (
            store,
            progress_bar(total=len(calls), initial=done, desc=description, disable=not show_progress) as bar,
        ):
            workers = [
                asyncio.create_task(self._work(pending, outdated, bar))
                for _ in range(self._policy.concurrency)
            ]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, pending: Iterator[tuple[str, LlmCall]], outdated: Set[str], bar: Any) -> None:
        """One of the concurrent workers, which share ``pending``."""
        for key, call in pending:
            row = {"key": key, **call.metadata, **await self._outcome(call)}
            if key in outdated:
                row["replaces"] = True
            if self._store is not None:
                self._store.append(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace"))
            self.rows[key] = row
            bar.update()

    async def _outcome(self, call: LlmCall) -> dict[str, Any]:
        """A row's "result", or its "error" with type, message and attempts."""
        attempts = 0
        try:
            async for attempt in self._attempts():
                with attempt:
                    attempts = attempt.retry_state.attempt_number
                    self.paid += 1
                    return {"result": await call.make()}
        except Exception as error:  # stored and reported; one failure must not end the other calls
            message = error_text(error, call.system)[:_MESSAGE_CHARACTERS]
            return {"error": {"type": type(error).__name__, "message": message, "attempts": attempts}}
        raise AssertionError("unreachable: tenacity raises when attempts run out")

    def _attempts(self) -> AsyncRetrying:
        return AsyncRetrying(
            stop=stop_after_attempt(self._policy.attempts),
            wait=wait_random_exponential(multiplier=self._policy.backoff_s, max=_MAX_BACKOFF_S),
            retry=retry_if_exception(_is_retryable),
            reraise=True,
        )

    def failures(self, calls: Mapping[str, LlmCall]) -> tuple[FailedCall, ...]:
        """Those of ``calls`` that failed, in their order."""
        errors = ((call.subject, self.rows[key].get("error")) for key, call in calls.items())
        return tuple(
            FailedCall(subject, error["type"], error["message"], error["attempts"])
            for subject, error in errors
            if error is not None
        )


def _is_retryable(error: BaseException) -> bool:
    """Whether the same call may succeed a little later. OpenAI's spent quota is a 429 that does not pass."""
    if getattr(error, "code", None) == "insufficient_quota":
        return False
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return status in _RETRYABLE_STATUS or status >= 500
    return any(kind.__name__ in _RETRYABLE_ERRORS for kind in type(error).__mro__)


def _read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """The newest row of each key; a result is replaced by a later error only where that says so."""
    rows: dict[str, dict[str, Any]] = {}
    for line in read_shards(path):
        try:
            row = parse_line(line.raw)
            key, is_outcome = str(row["key"]), "result" in row or "error" in row
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DatasetError(
                f"{line.where}: expected a result of an earlier run; give another path"
            ) from error
        if is_outcome and ("result" in row or row.get("replaces") or "result" not in rows.get(key, {})):
            rows[key] = row
    return rows
