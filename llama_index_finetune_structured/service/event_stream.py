"""Replies to clients that may leave: streams of server-sent events, and work that ends with the connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import ExitStack, aclosing
from typing import Any, TypeVar

from fastapi import Request, Response
from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from ..example import compact_json
from .answer_errors import answer_errors
from .errors import ApiError, error_body

__all__ = ["EventStream", "interleaved", "together", "until_disconnected"]

T = TypeVar("T")
_CLIENT_CLOSED_REQUEST = 499  # nginx's; nobody reads it but the log


class EventStream(EventSourceResponse):
    """A stream of OpenAI's chunks. It gives back what ``resources`` hold when it ends, however that is."""

    def __init__(self, chunks: AsyncGenerator[dict[str, Any], None], resources: ExitStack) -> None:
        super().__init__(_events(chunks), sep="\n")
        self._resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream. A client that leaves cancels it."""
        with self._resources:
            await super().__call__(scope, receive, send)


async def _events(chunks: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[dict[str, str], None]:
    try:
        async with aclosing(chunks):
            with answer_errors():
                async for chunk in chunks:
                    yield {"data": compact_json(chunk)}
    except ApiError as error:  # the status is sent: OpenAI's SDK raises what it finds here
        yield {"data": compact_json(error_body(error))}
    else:
        yield {"data": "[DONE]"}


async def interleaved(
    streams: Sequence[AsyncGenerator[T, None]],
) -> AsyncGenerator[tuple[int, T], None]:
    """The items of several streams as they come, each with the index of its stream; the first error ends all."""
    items = asyncio.Queue[tuple[int, T] | BaseException | None]()

    async def pump(index: int, stream: AsyncGenerator[T, None]) -> None:
        try:
            async with aclosing(stream):
                async for item in stream:
                    items.put_nowait((index, item))
            items.put_nowait(None)
        except Exception as error:
            items.put_nowait(error)

    tasks = [asyncio.create_task(pump(index, stream)) for index, stream in enumerate(streams)]
    try:
        running = len(tasks)
        while running:
            item = await items.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()


async def together(answers: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of several coroutines; the first error, or being cancelled, ends all."""
    tasks = [asyncio.create_task(answer) for answer in answers]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def until_disconnected(request: Request, work: Callable[[], Awaitable[Response]]) -> Response:
    """The response that ``work`` makes; where the client leaves before, ``work`` is cancelled."""
    working = asyncio.ensure_future(work())
    leaving = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else Response(status_code=_CLIENT_CLOSED_REQUEST)
    finally:
        working.cancel()
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
