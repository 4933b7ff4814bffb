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
from pydantic import Field

from ..local.model.quantization import Quantization
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
    """

    quantization: Quantization | None = Field(
        default=None, frozen=True, description="Hold the base's layers as nf4 or int8; None: as they are."
    )
    device: str | None = Field(
        default=None, frozen=True, description="Such as cpu or cuda:1; None: the best device of the machine."
    )

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
        form = chat_form(messages, kwargs, self.trained_schemas)
        return form.response(as_chat(self._chat_call(form.messages, form.keywords).complete()))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The answer to messages."""
        form = chat_form(messages, kwargs, self.trained_schemas)
        call = await asyncio.to_thread(self._chat_call, form.messages, form.keywords)
        return form.response(as_chat(await call.acomplete()))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """The answer to messages, as a stream."""
        form = chat_form(messages, kwargs, self.trained_schemas)
        call = self._chat_call(form.messages, form.keywords)
        return form.responses(as_chat(chunk) for chunk in call.stream())

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """The answer to messages, as a stream."""
        form = chat_form(messages, kwargs, self.trained_schemas)
        call = await asyncio.to_thread(self._chat_call, form.messages, form.keywords)
        return form.aresponses(as_chat(chunk) async for chunk in call.astream())

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The answer to a prompt."""
        return self._completion_call(prompt, formatted, kwargs).complete()

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The answer to a prompt."""
        call = await asyncio.to_thread(self._completion_call, prompt, formatted, kwargs)
        return await call.acomplete()

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """The answer to a prompt, as a stream."""
        return self._completion_call(prompt, formatted, kwargs).stream()

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """The answer to a prompt, as a stream."""
        call = await asyncio.to_thread(self._completion_call, prompt, formatted, kwargs)
        return call.astream()
