"""Answers as they grow: token streams, sync and async, as (text so far, what is new)."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import AsyncIterator, Iterator
from typing import Any

from .engine import Generator
from .request import Request

__all__ = ["astream", "stream"]

Chunk = tuple[str, str]


def stream(generator: Generator, tokenizer: Any, request: Request) -> Iterator[Chunk]:
    """Generate a request and yield its text as it grows; closing the iterator stops the generation."""
    tokens: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    text = _GrowingText(tokenizer)
    request.on_token = tokens.put
    request.answer.add_done_callback(lambda _: tokens.put(None))
    generator.submit(request)
    try:
        while (token := tokens.get()) is not None:
            if chunk := text.add(token):
                yield chunk
        request.answer.result()  # raises what went wrong
        if chunk := text.rest():
            yield chunk
    finally:
        request.cancelled = True


async def astream(generator: Generator, tokenizer: Any, request: Request) -> AsyncIterator[Chunk]:
    """As :func:`stream`, for async callers."""
    loop, tokens = asyncio.get_running_loop(), asyncio.Queue[int | None]()
    text = _GrowingText(tokenizer)

    def tell(token: int | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            loop.call_soon_threadsafe(tokens.put_nowait, token)

    request.on_token = tell
    request.answer.add_done_callback(lambda _: tell(None))
    generator.submit(request)
    try:
        while (token := await tokens.get()) is not None:
            if chunk := text.add(token):
                yield chunk
        request.answer.result()
        if chunk := text.rest():
            yield chunk
    finally:
        request.cancelled = True


class _GrowingText:
    """Text of a growing token list; a character whose bytes are not all there yet is held back."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._tokens, self._shown = tokenizer, list[int](), ""

    def add(self, token: int) -> Chunk | None:
        self._tokens.append(token)
        text = self._text()
        return None if text.endswith("\N{REPLACEMENT CHARACTER}") else self._show(text)

    def rest(self) -> Chunk | None:
        return self._show(self._text())

    def _text(self) -> str:
        return str(self._tokenizer.decode(self._tokens, skip_special_tokens=True))

    def _show(self, text: str) -> Chunk | None:
        delta, self._shown = text[len(self._shown) :], text
        return (text, delta) if delta else None
