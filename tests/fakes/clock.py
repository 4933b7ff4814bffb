"""A clock whose time advances only by its own sleeps."""

from __future__ import annotations

import asyncio
from datetime import date

from llama_index_finetune_structured.engines.timeouts import Clock


class FakeClock(Clock):
    def __init__(self, today: date = date(2026, 6, 1)) -> None:
        self.time_s = 0.0
        self.sleeps: list[float] = []
        self._today = today

    def now_s(self) -> float:
        return self.time_s

    def today(self) -> date:
        return self._today

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.time_s += seconds

    async def asleep(self, seconds: float) -> None:
        self.sleep(seconds)
        await asyncio.sleep(0)
