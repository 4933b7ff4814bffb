"""Token streams, sync and async, as (text so far, new text)."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import AsyncIterator, Iterator
from typing import Any

from .engine import GenerationEngine
from .request import GenerationRequest

__all__ = ["astream", "stream"]

Chunk = tuple[str, str]


def stream(engine: GenerationEngine, tokenizer: Any, request: GenerationRequest) -> Iterator[Chunk]:
    """Generate a request and yield (text so far, new text) as it grows.

    Closing the iterator stops the generation. Raises what the model raised.
    """
    tokens: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    text = _GrowingText(tokenizer)
    request.on_token = tokens.put
    request.future.add_done_callback(lambda _: tokens.put(None))
    engine.submit(request)
    try:
        while (token := tokens.get()) is not None:
            if chunk := text.append(token):
                yield chunk
        request.future.result()  # raises the model's error
        if chunk := text.rest():
            yield chunk
    finally:
        request.cancelled = True


async def astream(
    engine: GenerationEngine, tokenizer: Any, request: GenerationRequest
) -> AsyncIterator[Chunk]:
    """As ``stream``, for async callers."""
    loop, tokens = asyncio.get_running_loop(), asyncio.Queue[int | None]()
    text = _GrowingText(tokenizer)

    def put(token: int | None) -> None:
        with contextlib.suppress(
            RuntimeError
        ):  # the event loop is closed, and with it the reader of the stream
            loop.call_soon_threadsafe(tokens.put_nowait, token)

    request.on_token = put
    request.future.add_done_callback(lambda _: put(None))
    engine.submit(request)
    try:
        while (token := await tokens.get()) is not None:
            if chunk := text.append(token):
                yield chunk
        request.future.result()
        if chunk := text.rest():
            yield chunk
    finally:
        request.cancelled = True


class _GrowingText:
    """Decoded text of a growing token list; held back while it ends inside a multi-byte character."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._tokens, self._shown = tokenizer, list[int](), ""

    def append(self, token: int) -> Chunk | None:
        """The chunk that a token adds; None where it completes no character."""
        self._tokens.append(token)
        text = self._text()
        return None if text.endswith("\N{REPLACEMENT CHARACTER}") else self._show(text)

    def rest(self) -> Chunk | None:
        """The chunk of what was held back; None without any."""
        return self._show(self._text())

    def _text(self) -> str:
        return str(self._tokenizer.decode(self._tokens, skip_special_tokens=True))

    def _show(self, text: str) -> Chunk | None:
        delta, self._shown = text[len(self._shown) :], text
        return (text, delta) if delta else None
