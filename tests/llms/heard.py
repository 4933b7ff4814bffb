"""Hears what the local models tell of their structured answers."""

from __future__ import annotations

from typing import Any

from llama_index_instrumentation.event_handlers import BaseEventHandler
from pydantic import Field


class Heard(BaseEventHandler):
    """(second tries, places that ran into a bound) of each structured answer."""

    events: list[tuple[int, list[str]]] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Heard"

    def handle(self, event: Any, **_: Any) -> None:
        if event.class_name() == "StructuredAnswerEvent":
            self.events.append((event.retries, event.bound_hits))
