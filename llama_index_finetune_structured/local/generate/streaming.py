"""Token streams, sync and async, as chunks of reasoning, then of text; the last has the result."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, NamedTuple

from ...background import POLL_S
from ..model.reasoning import without_mark
from .engine import GenerationEngine
from .request import GenerationRequest, GenerationResult
from .stop_texts import StopTexts

__all__ = ["Chunk", "astream", "stream"]


_Token = tuple[int, bool]  # and whether it is of the reasoning


class Chunk(NamedTuple):
    """The text so far, what this chunk adds to it, and in the last chunk, which may add nothing, the result.

    ``reasoning`` and ``reasoning_delta``: the same of what is before the answer.
    """

    text: str
    delta: str
    result: GenerationResult | None = None
    reasoning: str = ""
    reasoning_delta: str = ""


def stream(
    engine: GenerationEngine, tokenizer: Any, request: GenerationRequest, stops: StopTexts
) -> Iterator[Chunk]:
    """Generate a request and yield its text as it grows, up to the first stop text.

    Closing the iterator stops the generation. Raises what the model raised.
    """
    tokens: queue.SimpleQueue[_Token | None] = queue.SimpleQueue()
    text = _GrowingReply(tokenizer, stops, request)
    _put_tokens(request, tokens.put)
    stops.end(request, tokenizer)
    request.future.add_done_callback(lambda _: tokens.put(None))
    engine.submit(request)
    try:
        while (token := _next(tokens, request)) is not None:
            if chunk := text.append(token):
                yield chunk
        yield text.last(request.future.result())  # raises the model's error
    finally:
        request.cancelled = True


def _put_tokens(request: GenerationRequest, put: Callable[[_Token], None]) -> None:
    request.on_token = lambda token: put((token, False))
    request.on_reasoning = lambda token: put((token, True))


def _next(tokens: queue.SimpleQueue[_Token | None], request: GenerationRequest) -> _Token | None:
    """The next token, None at the end; Ctrl-C is noticed within ``POLL_S``, as in ``result_of``.

    So is an end whose callback failed, which would have put None.
    """
    while True:
        with contextlib.suppress(queue.Empty):
            return tokens.get(timeout=POLL_S)
        if request.future.done():
            return None  # the result holds the tokens that are missing


async def astream(
    engine: GenerationEngine, tokenizer: Any, request: GenerationRequest, stops: StopTexts
) -> AsyncIterator[Chunk]:
    """As ``stream``, for async callers."""
    loop, tokens = asyncio.get_running_loop(), asyncio.Queue[_Token | None]()
    text = _GrowingReply(tokenizer, stops, request)

    def put(token: _Token | None) -> None:
        with contextlib.suppress(
            RuntimeError
        ):  # the event loop is closed, and with it the reader of the stream
            loop.call_soon_threadsafe(tokens.put_nowait, token)

    _put_tokens(request, put)
    stops.end(request, tokenizer)
    request.future.add_done_callback(lambda _: put(None))
    engine.submit(request)
    try:
        while (token := await _anext(tokens, request)) is not None:
            if chunk := text.append(token):
                yield chunk
        yield text.last(request.future.result())
    finally:
        request.cancelled = True


async def _anext(tokens: asyncio.Queue[_Token | None], request: GenerationRequest) -> _Token | None:
    """As ``_next``, for async callers."""
    if not tokens.empty():
        return tokens.get_nowait()
    following = asyncio.ensure_future(tokens.get())
    try:
        while not (await asyncio.wait({following}, timeout=POLL_S))[0]:
            if request.future.done():
                return None  # the result holds the tokens that are missing
        return following.result()
    finally:
        following.cancel()


class _GrowingReply:
    """Reasoning, if the request has any, and then the answer, as they grow."""

    def __init__(self, tokenizer: Any, stops: StopTexts, request: GenerationRequest) -> None:
        self._rules = None if request.reasoning is None else request.reasoning.rules
        self._answer, self._thought = _GrowingText(tokenizer, stops), _GrowingText(tokenizer, StopTexts())
        self._reasoning = ""  # as far as it was shown

    def append(self, token: _Token) -> Chunk | None:
        """The chunk that a token adds; None where it adds none."""
        number, is_reasoning = token
        if not is_reasoning:
            chunk = self._answer.append(number)
            return None if chunk is None else chunk._replace(reasoning=self._reasoning)
        thought = self._thought.append(number)
        if thought is None or self._rules is None:
            return None
        chunk = self._shown(Chunk("", ""), without_mark(thought.text, self._rules.mark))
        return chunk if chunk.reasoning_delta else None

    def last(self, result: GenerationResult) -> Chunk:
        """The last chunk: what was held back, and the result."""
        chunk = self._answer.last(result)
        return chunk if self._rules is None else self._shown(chunk, self._rules.text(result.reasoning))

    def _shown(self, chunk: Chunk, reasoning: str) -> Chunk:
        delta = reasoning[len(self._reasoning) :]
        self._reasoning = max(reasoning, self._reasoning, key=len)
        return chunk._replace(reasoning=reasoning, reasoning_delta=delta)


class _GrowingText:
    """Decoded text of a growing token list; held back while its end may change.

    That is the case inside a multi-byte character, and where the end may be the start of a stop text.
    """

    def __init__(self, tokenizer: Any, stops: StopTexts) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._shown = ""
        # Decoding all tokens at each one would take time with the square of their number. Decoded again are those
        # since the last whole character, and those before them as context: a text's first token may lose a space.
        self._done, self._context, self._new = "", list[int](), list[int]()

    def append(self, token: int) -> Chunk | None:
        """The chunk that a token adds; None where it adds none."""
        self._new.append(token)
        before = self._decoded(self._context)
        added = self._decoded(self._context + self._new)[len(before) :]
        text, stopped = self._stops.cut(self._done + added)
        if not stopped and added.endswith("\N{REPLACEMENT CHARACTER}"):
            return None
        self._done, self._context, self._new = self._done + added, self._new, []
        shown = text if stopped else self._stops.without_start(text)
        return Chunk(*self._show(shown)) if len(shown) > len(self._shown) else None

    def last(self, result: GenerationResult) -> Chunk:
        """The last chunk: what was held back, and the result."""
        text, result = self._stops.applied(self._decoded(result.tokens), result)
        return Chunk(*self._show(text), result)

    def _decoded(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _show(self, text: str) -> tuple[str, str]:
        delta, self._shown = text[len(self._shown) :], max(text, self._shown, key=len)
        return text, delta
