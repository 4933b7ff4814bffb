"""The teacher of a cascade within a time limit."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from concurrent.futures import Future, wait
from typing import Any

from llama_index.core.llms.llm import LLM

from ..background import POLL_S
from ..errors import ServiceError
from .cascade_questions import CascadeQuestion

__all__ = ["awithin", "within"]


def within(seconds: float | None, question: CascadeQuestion, teacher: LLM) -> Any:
    """The teacher's answer. Raises ServiceError where it takes longer; its call then ends by itself."""
    if seconds is None:
        return question.put(teacher, "teacher")
    future: Future[Any] = Future()
    context = contextvars.copy_context()

    def ask() -> None:
        try:
            future.set_result(context.run(question.put, teacher, "teacher"))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=ask, name="cascade-teacher", daemon=True).start()
    end = time.monotonic() + seconds
    while not future.done() and (left := end - time.monotonic()) > 0:
        wait([future], timeout=min(left, POLL_S))  # Ctrl-C is noticed
    if not future.done():
        raise _too_late(seconds)
    return future.result()


async def awithin(seconds: float | None, question: CascadeQuestion, teacher: LLM) -> Any:
    """The teacher's answer. Raises ServiceError where it takes longer, and cancels its call."""
    asked = question.put(teacher, "teacher", "a")
    if seconds is None:
        return await asked
    try:
        return await asyncio.wait_for(asked, seconds)
    except asyncio.TimeoutError as error:
        raise _too_late(seconds) from error


def _too_late(seconds: float) -> ServiceError:
    return ServiceError(
        f"the teacher did not answer within {seconds} s (teacher_timeout): raise it, or look whether the teacher works",
        refused=False,
    )
