"""Timeouts and polling intervals of the hosted engines, and the clock they are measured by."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import date, datetime, timezone

from ..errors import ConfigurationError

__all__ = ["Clock", "Timeouts", "backoff_s"]


class Clock:
    """The system clock; tests pass their own."""

    def now_s(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def today(self) -> date:
        """Today's date, UTC."""
        return datetime.now(timezone.utc).date()

    def sleep(self, seconds: float) -> None:
        """Block this thread."""
        time.sleep(seconds)

    async def asleep(self, seconds: float) -> None:
        """Suspend this task."""
        await asyncio.sleep(seconds)


SYSTEM_CLOCK = Clock()


@dataclass(frozen=True)
class Timeouts:
    """Timeouts and polling intervals of the hosted engines, in seconds.

    Attributes:
        job_s: How long get_finetuned_model() and wait() follow a job.
        file_s: Processing of an uploaded file. After it the job is submitted all the same, and the provider's
            reply decides.
        submit_s: One submission, its retries included.
        request_s: One HTTP request.
        poll_s: Longest pause between two requests for a job's state.
        settle_s: After a submission whose outcome is unknown, the longest time for which ``finetune()`` searches the
            provider's list for the job before it asks.
        clock: What measures time and pauses: the system's clock; tests pass their own.

    Raises:
        ConfigurationError: A time is not a finite number above 0.
    """

    job_s: float = 48 * 3600
    file_s: float = 300
    submit_s: float = 1800
    request_s: float = 600
    poll_s: float = 30
    settle_s: float = 60
    clock: Clock = SYSTEM_CLOCK

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.name != "clock" and not (isinstance(value, (int, float)) and 0 < value < math.inf):
                raise ConfigurationError(
                    f"Timeouts({setting.name}={value!r}): expected a finite number of seconds above 0"
                )


def backoff_s(first_s: float, longest_s: float) -> Iterator[float]:
    """Yield pauses in seconds that double from ``first_s`` up to ``longest_s``; never ends."""
    pause_s = min(first_s, longest_s)
    while True:
        yield pause_s
        pause_s = min(pause_s * 2, longest_s)
