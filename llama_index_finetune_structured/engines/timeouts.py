"""How long hosted engines wait, and on which clock: every wait has an end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timezone

__all__ = ["Clock", "Waits", "backoff_s"]


class Clock:
    """The system's clock; tests put their own in its place."""

    def now_s(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def today(self) -> date:
        """Today's date, UTC."""
        return datetime.now(timezone.utc).date()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def asleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


SYSTEM_CLOCK = Clock()


@dataclass(frozen=True)
class Waits:
    """Bounds and pauses, in seconds.

    ``job_s``: a whole job, as get_finetuned_model() waits for it. ``file_s``: an uploaded file's processing,
    before the job is asked for anyway (the provider's answer to that is what counts).
    ``submit_s``: one submission with all its retries. ``request_s``: one HTTP request. ``poll_s``: the
    longest pause between two looks at a job. ``settle_s``: after a submission whose outcome is unknown,
    the longest time the job may take to show up in the provider's list before it is sent again.
    """

    job_s: float = 48 * 3600
    file_s: float = 300
    submit_s: float = 1800
    request_s: float = 600
    poll_s: float = 30
    settle_s: float = 60
    clock: Clock = SYSTEM_CLOCK


def backoff_s(first_s: float, longest_s: float) -> Iterator[float]:
    """Pauses that double from ``first_s`` up to ``longest_s``, without end."""
    pause_s = min(first_s, longest_s)
    while True:
        yield pause_s
        pause_s = min(pause_s * 2, longest_s)
