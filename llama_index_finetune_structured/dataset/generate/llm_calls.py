"""Calls that cost money: bounded, retried, and each result on disk before the next is asked for.

Results are JSONL rows keyed by a content hash of what was asked, written by the capture's crash-safe store:
a killed run goes on where it was, and what is on disk is never paid for again. Lost are at most the calls
that were under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential
from tqdm import tqdm

from ...capture.redaction import redact_secrets
from ...errors import DatasetError
from ...jsonl import parse_line
from ...jsonl_store import JsonlStore, read_shards

__all__ = ["CallPolicy", "Failure", "Job", "PaidCalls"]

_PASSING_STATUS = {408, 409, 425, 429}
_PASSING_KINDS = {"ConnectionError", "TimeoutError", "APIConnectionError", "TransportError"}


class CallPolicy(BaseModel):
    """How many calls are under way at a time, how often one is tried, and the first back-off in seconds.

    Tried again are dropped connections, time-outs, rate limits and server errors; other errors are final.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    concurrency: int = Field(default=8, gt=0)
    attempts: int = Field(default=4, gt=0)
    backoff_s: float = Field(default=0.5, ge=0)


@dataclass(frozen=True)
class Failure:
    """A call that gave no result: what was asked, the error's type and message (secrets removed)."""

    asked: str
    error: str
    message: str
    attempts: int


@dataclass(frozen=True)
class Job:
    """One call: ``about`` is kept with its result; ``asked`` names it in failures."""

    asked: str
    about: Mapping[str, Any]
    call: Callable[[], Awaitable[dict[str, Any]]]


class PaidCalls:
    """The results of one kind of call in one file (None: kept in memory only).

    ``paid`` counts the attempts made, ``rows`` holds the newest row of each key.
    """

    def __init__(self, path: str | os.PathLike[str] | None, policy: CallPolicy) -> None:
        self._store = None if path is None else JsonlStore(path)
        self._policy = policy
        self.rows = {} if path is None or not Path(path).exists() else _read_rows(Path(path))
        self.paid = 0

    def results_for(self, jobs: Mapping[str, Job]) -> int:
        """How many of ``jobs`` have their result already; a failure is none."""
        return sum("result" in self.rows.get(key, {}) for key in jobs)

    async def run(
        self, jobs: Mapping[str, Job], *, retry_failed: bool, description: str, show_progress: bool
    ) -> None:
        """Make the calls whose key has no row yet; with ``retry_failed`` also those whose row is an error."""
        missing = {
            key: job
            for key, job in jobs.items()
            if key not in self.rows or (retry_failed and "error" in self.rows[key])
        }
        pending = iter(missing.items())
        done = len(jobs) - len(missing)
        store = contextlib.closing(self._store) if self._store else contextlib.nullcontext()
        with store, tqdm(total=len(jobs), initial=done, desc=description, disable=not show_progress) as bar:
            workers = [asyncio.create_task(self._work(pending, bar)) for _ in range(self._policy.concurrency)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, pending: Iterator[tuple[str, Job]], bar: Any) -> None:
        for key, job in pending:
            row = {"key": key, **job.about, **await self._outcome(job)}
            if self._store is not None:
                self._store.append(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace"))
            self.rows[key] = row
            bar.update()

    async def _outcome(self, job: Job) -> dict[str, Any]:
        attempts = 0
        try:
            async for attempt in self._tries():
                with attempt:
                    attempts = attempt.retry_state.attempt_number
                    self.paid += 1
                    return {"result": await job.call()}
        except Exception as error:  # kept with its question, never swallowed
            message = redact_secrets(str(error))[:500]
            return {"error": {"type": type(error).__name__, "message": message, "attempts": attempts}}
        raise AssertionError("unreachable: tenacity raises when attempts run out")

    def _tries(self) -> AsyncRetrying:
        return AsyncRetrying(
            stop=stop_after_attempt(self._policy.attempts),
            wait=wait_random_exponential(multiplier=self._policy.backoff_s, max=60),
            retry=retry_if_exception(_may_pass),
            reraise=True,
        )

    def failures(self, jobs: Mapping[str, Job]) -> tuple[Failure, ...]:
        """The failed ones of ``jobs``, in their order."""
        rows = ((job.asked, self.rows[key]) for key, job in jobs.items())
        return tuple(
            Failure(asked, row["error"]["type"], row["error"]["message"], row["error"]["attempts"])
            for asked, row in rows
            if "error" in row
        )


def _may_pass(error: BaseException) -> bool:
    """Whether the same call may succeed a little later."""
    if getattr(error, "code", None) == "insufficient_quota":
        return False
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return status in _PASSING_STATUS or status >= 500
    return any(kind.__name__ in _PASSING_KINDS for kind in type(error).__mro__)


def _read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """The newest row of each key; a result is never replaced by a later error."""
    rows: dict[str, dict[str, Any]] = {}
    for line in read_shards(path):
        try:
            row = parse_line(line.raw)
            key, known = str(row["key"]), "result" in row or "error" in row
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DatasetError(
                f"{line.where}: expected a result of an earlier run; give another path"
            ) from error
        if known and not ("error" in row and "result" in rows.get(key, {})):
            rows[key] = row
    return rows
