"""Chat and completion of a local model, in the eight ways of LlamaIndex's ``LLM``."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from pydantic import Field, PrivateAttr

from ..local.model.quantization import Quantization
from .call_places import CallPlaces, Place
from .local_calls import LocalCall, as_chat
from .merged_calls import MergedCall
from .prompt_settings import PromptSettingsLLM
from .structured_answers import StructuredAnswersLLM
from .tool_calls import ToolCallingLLM, chat_form

__all__ = ["LocalChatLLM"]


class LocalChatLLM(ToolCallingLLM, StructuredAnswersLLM, PromptSettingsLLM):
    """What ``LoraLLM`` is to LlamaIndex: each call is made of its messages or prompt, then generated in its way.

    Attributes:
        quantization: Hold the base's layers in fewer bits.
        device: Where the model is held and computes.
        max_queue: Most calls that wait or are answered at a time, of this object and its copies; one more raises
            QueueFullError at once. None (default): any number.
        request_timeout: Seconds that a call may take, its attempts together, the time that it waits included; then it
            raises RequestTimeoutError. None (default): any time.
    """

    quantization: Quantization | None = Field(
        default=None, frozen=True, description="Hold the base's layers as nf4 or int8; None: as they are."
    )
    device: str | None = Field(
        default=None,
        frozen=True,
        description="Such as cpu, cuda:1, or auto for all GPUs; None: the best one.",
    )

    max_queue: int | None = Field(
        default=None, gt=0, description="Most calls that wait or are answered at a time; None: any number."
    )
    request_timeout: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="Seconds that a call may take; None: any time."
    )

    _places: CallPlaces = PrivateAttr(default_factory=CallPlaces)

    def _place(self) -> Place:
        return self._places.take(self.max_queue, self.request_timeout)

    @abstractmethod
    def _chat_call(
        self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]
    ) -> LocalCall | MergedCall:
        """The call of messages."""

    @abstractmethod
    def _completion_call(
        self, prompt: str, formatted: bool, kwargs: Mapping[str, Any]
    ) -> LocalCall | MergedCall:
        """The call of a prompt."""

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The answer to messages."""
        with self._place() as place:
            form = chat_form(messages, kwargs, self.trained_schemas)
            call = self._chat_call(form.messages, form.keywords).until(place.deadline)
            return form.response(as_chat(call.complete()))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The answer to messages."""
        with self._place() as place:
            form = chat_form(messages, kwargs, self.trained_schemas)
            call = await asyncio.to_thread(self._chat_call, form.messages, form.keywords)
            return form.response(as_chat(await call.until(place.deadline).acomplete()))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """The answer to messages, as a stream."""
        place = self._place()
        with place.unless_failed():
            form = chat_form(messages, kwargs, self.trained_schemas)
            call = self._chat_call(form.messages, form.keywords).until(place.deadline)
            return form.responses(as_chat(chunk) for chunk in place.during(call.stream()))

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """The answer to messages, as a stream."""
        place = self._place()
        with place.unless_failed():
            form = chat_form(messages, kwargs, self.trained_schemas)
            call = await asyncio.to_thread(self._chat_call, form.messages, form.keywords)
            chunks = place.aduring(call.until(place.deadline).astream())
            return form.aresponses(as_chat(chunk) async for chunk in chunks)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The answer to a prompt."""
        with self._place() as place:
            return self._completion_call(prompt, formatted, kwargs).until(place.deadline).complete()

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The answer to a prompt."""
        with self._place() as place:
            call = await asyncio.to_thread(self._completion_call, prompt, formatted, kwargs)
            return await call.until(place.deadline).acomplete()

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """The answer to a prompt, as a stream."""
        place = self._place()
        with place.unless_failed():
            call = self._completion_call(prompt, formatted, kwargs).until(place.deadline)
            return place.during(call.stream())

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """The answer to a prompt, as a stream."""
        place = self._place()
        with place.unless_failed():
            call = await asyncio.to_thread(self._completion_call, prompt, formatted, kwargs)
            return place.aduring(call.until(place.deadline).astream())
