"""Token streams, sync and async, as (text so far, new text)."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import AsyncIterator, Iterator
from typing import Any

from .engine import GenerationEngine
from .request import GenerationRequest
from .stop_texts import StopTexts

__all__ = ["astream", "stream"]

Chunk = tuple[str, str]


def stream(
    engine: GenerationEngine, tokenizer: Any, request: GenerationRequest, stops: StopTexts
) -> Iterator[Chunk]:
    """Generate a request and yield (text so far, new text) as it grows, up to the first stop text.

    Closing the iterator stops the generation. Raises what the model raised.
    """
    tokens: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    text = _GrowingText(tokenizer, stops)
    request.on_token = tokens.put
    stops.end(request, tokenizer)
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
    engine: GenerationEngine, tokenizer: Any, request: GenerationRequest, stops: StopTexts
) -> AsyncIterator[Chunk]:
    """As ``stream``, for async callers."""
    loop, tokens = asyncio.get_running_loop(), asyncio.Queue[int | None]()
    text = _GrowingText(tokenizer, stops)

    def put(token: int | None) -> None:
        with contextlib.suppress(
            RuntimeError
        ):  # the event loop is closed, and with it the reader of the stream
            loop.call_soon_threadsafe(tokens.put_nowait, token)

    request.on_token = put
    stops.end(request, tokenizer)
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
    """Decoded text of a growing token list; held back while its end may change.

    That is the case inside a multi-byte character, and where the end may be the start of a stop text.
    """

    def __init__(self, tokenizer: Any, stops: StopTexts) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._tokens, self._shown = list[int](), ""

    def append(self, token: int) -> Chunk | None:
        """The chunk that a token adds; None where it adds none."""
        self._tokens.append(token)
        text, stopped = self._text()
        if not stopped and text.endswith("\N{REPLACEMENT CHARACTER}"):
            return None
        return self._show(text if stopped else self._stops.without_start(text))

    def rest(self) -> Chunk | None:
        """The chunk of what was held back; None without any.

        An empty answer is one empty chunk: LlamaIndex's events need a response.
        """
        return self._show(self._text()[0]) or (None if self._shown else ("", ""))

    def _text(self) -> tuple[str, bool]:
        """The text before the first stop text, and whether it has one."""
        return self._stops.cut(str(self._tokenizer.decode(self._tokens, skip_special_tokens=True)))

    def _show(self, text: str) -> Chunk | None:
        delta, self._shown = text[len(self._shown) :], max(text, self._shown, key=len)
        return (text, delta) if delta else None
