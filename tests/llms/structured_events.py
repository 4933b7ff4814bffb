"""Recorder of the events that structured calls emit."""

from __future__ import annotations

from typing import Any

from llama_index_instrumentation.event_handlers import BaseEventHandler
from pydantic import Field


class StructuredEvents(BaseEventHandler):
    """(retries, bound hits) of each structured call, and the problems of its answer."""

    events: list[tuple[int, list[str]]] = Field(default_factory=list)
    problems: list[tuple[str, ...]] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "StructuredEvents"

    def handle(self, event: Any, **_: Any) -> None:
        if event.class_name() == "StructuredAnswerEvent":
            self.events.append((event.retries, event.bound_hits))
            self.problems.append(event.problems)
