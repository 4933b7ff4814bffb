"""LlamaIndex's ``OpenAI`` with errors that show none of the secrets in use, whatever a server echoes in its reply."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
)
from llama_index.llms.openai import OpenAI

from ..capture.known_secrets import mask_error, mask_secrets, mask_values

__all__ = ["MaskedErrors"]

T = TypeVar("T")
C = TypeVar("C")


class MaskedErrors(OpenAI):
    """Base of the hosted LLMs.

    The SDK's client makes the errors of refused requests without secrets, since LlamaIndex logs those that it
    retries; all others, such as those within a stream, are masked on their way out.
    """

    def _get_client(self) -> Any:
        return _with_masked_errors(super()._get_client())

    def _get_aclient(self) -> Any:
        return _with_masked_errors(super()._get_aclient())

    def _chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        with _masking():
            answer: ChatResponse = super()._chat(messages, **kwargs)
        return answer

    def _complete(self, prompt: str, **kwargs: Any) -> CompletionResponse:
        with _masking():
            answer: CompletionResponse = super()._complete(prompt, **kwargs)
        return answer

    async def _achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        with _masking():
            answer: ChatResponse = await super()._achat(messages, **kwargs)
        return answer

    async def _acomplete(self, prompt: str, **kwargs: Any) -> CompletionResponse:
        with _masking():
            answer: CompletionResponse = await super()._acomplete(prompt, **kwargs)
        return answer

    def _stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        return _masked(super()._stream_chat(messages, **kwargs))

    def _stream_complete(self, prompt: str, **kwargs: Any) -> CompletionResponseGen:
        return _masked(super()._stream_complete(prompt, **kwargs))

    async def _astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        return _amasked(await super()._astream_chat(messages, **kwargs))

    async def _astream_complete(self, prompt: str, **kwargs: Any) -> CompletionResponseAsyncGen:
        return _amasked(await super()._astream_complete(prompt, **kwargs))


def _with_masked_errors(client: C) -> C:
    """The SDK's client; its method that makes the error of a reply is replaced, once."""
    make: Any = getattr(client, "_make_status_error", None)
    if make is None or getattr(make, "is_masked", False):
        return client

    def make_masked(message: str, *, body: object, response: Any) -> Any:
        return make(mask_secrets(message), body=mask_values(body), response=response)

    make_masked.is_masked = True  # type: ignore[attr-defined]
    client._make_status_error = make_masked  # type: ignore[attr-defined]
    return client


@contextmanager
def _masking() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        mask_error(error)
        raise


def _masked(stream: Generator[T, None, None]) -> Generator[T, None, None]:
    with _masking():
        yield from stream


async def _amasked(stream: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    with _masking():
        async for item in stream:
            yield item
