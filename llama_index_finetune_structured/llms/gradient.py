"""LlamaIndex LLMs for models behind Gradient's protocol."""

from __future__ import annotations

import asyncio
import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from pydantic import BaseModel, ConfigDict, SecretStr
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential
from typing_extensions import Self

from ..errors import ServiceError
from .call_options import Stops, checked_options, refuse_unknown_fields
from .gradient_api import GradientApi, connect_gradient, resolve_host
from .keys import ApiKey, secret_key

__all__ = ["GradientBaseModelLLM", "GradientModelAdapterLLM"]

_DEFAULT_OUTPUT_TOKENS = 256  # reported to LlamaIndex where max_tokens is None


class _Options(BaseModel):
    """The options of one call, with the names and ranges of its keywords. None: the server's default."""

    model_config = ConfigDict(frozen=True)

    max_tokens: int | None = Field(default=None, gt=0, lt=512, strict=True)
    temperature: float | None = Field(default=None, ge=0, allow_inf_nan=False, strict=True)
    top_k: int | None = Field(default=None, gt=0, strict=True)
    top_p: float | None = Field(default=None, gt=0, le=1, strict=True)
    auto_template: Any = None
    guidance: Any = None
    rag: Any = None
    stop: Stops = ()


class _GradientLLM(CustomLLM):
    """Base of both Gradient LLMs. Connects on first use; the token is in no repr, dump or pickle.

    The public classes document the arguments and fields: the API reference shows no private base.
    """

    max_tokens: int | None = Field(default=None, gt=0, lt=512, description="Token limit of an answer.")
    context_window: int = Field(default=4096, gt=0, description="Tokens of prompt and answer together.")
    temperature: float | None = Field(default=None, ge=0)
    top_k: int | None = Field(default=None, gt=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    is_chat_model: bool = Field(default=False, description="Whether LlamaIndex sends messages, not text.")
    max_retries: int = Field(default=3, ge=0, description="Retries of a call that gets no answer.")
    timeout: float = Field(default=120, gt=0, description="Timeout of a request, in seconds.")
    host: str = Field(default="", description="Address of the server.")
    workspace_id: str | None = Field(default=None)

    _token: SecretStr = PrivateAttr(default=SecretStr(""))
    _api: GradientApi | None = PrivateAttr(default=None)
    _model_id: str | None = PrivateAttr(default=None)

    def __init__(self, *, host: str | None = None, access_token: ApiKey = None, **fields: Any) -> None:
        refuse_unknown_fields(type(self), fields, also=("host", "access_token"))
        access_token = secret_key(access_token)
        super().__init__(host=resolve_host(host), **fields)
        self._token = access_token

    @property
    def metadata(self) -> LLMMetadata:
        """Context window, token limit and name, as LlamaIndex reads them."""
        return LLMMetadata(
            context_window=self.context_window,
            num_output=self.max_tokens or _DEFAULT_OUTPUT_TOKENS,
            is_chat_model=self.is_chat_model,
            is_function_calling_model=False,
            model_name=self._name(),
        )

    @classmethod
    def class_name(cls) -> str:
        """The class's name in LlamaIndex's dumps."""
        return cls.__name__

    @abstractmethod
    def _name(self) -> str:
        """The slug or id that the user passed."""

    def _find_model(self, _api: GradientApi, /) -> str:
        """The model's id in the protocol."""
        return self._name()

    def _connected(self) -> tuple[GradientApi, str]:
        if self._api is None:
            self._api = connect_gradient(self.host, self._token, self.workspace_id, self.timeout)
        if self._model_id is None:
            self._model_id = self._find_model(self._api)
        return self._api, self._model_id

    def close(self) -> None:
        """Drop the connection; the next call opens another."""
        self._api = None

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without token and connection. The copy takes its token from the environment."""
        bare = self.model_copy()
        bare._token, bare._api = SecretStr(""), None
        return dict(super(_GradientLLM, bare).__getstate__())

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy with a connection of its own."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        shared = {"callback_manager", "rate_limiter"}
        changes = {name: copy.deepcopy(value, memo) for name, value in fields.items() if name not in shared}
        clone = self.model_copy(update=changes)
        clone._api = None
        return clone

    # -- one answer --

    def _answer(self, prompt: str, **keywords: Any) -> CompletionResponse:
        """One answer; a request without a reply is retried, a refused one is not."""
        options = checked_options(_Options, keywords, self)
        parameters = options.model_dump(exclude={"stop", "max_tokens"}, exclude_unset=True)
        parameters["max_generated_token_count"] = options.max_tokens
        reply = Retrying(
            stop=stop_after_attempt(self.max_retries + 1),
            wait=wait_exponential(multiplier=0.25, max=8),
            retry=retry_if_exception(lambda e: isinstance(e, ServiceError) and not e.refused),
            reraise=True,
        )(lambda: self._complete_once(prompt, parameters))
        text = _cut(reply.generated_output, options.stop)
        return CompletionResponse(text=text, raw={"finish_reason": reply.finish_reason})

    def _complete_once(self, prompt: str, parameters: dict[str, Any]) -> Any:
        api, model_id = self._connected()
        return api.complete(model_id, prompt, **parameters)

    def _prompt(self, messages: Sequence[ChatMessage]) -> str:
        assert self.messages_to_prompt is not None
        return self.messages_to_prompt(messages)

    def _formatted(self, prompt: str, formatted: bool) -> str:
        assert self.completion_to_prompt is not None
        return prompt if formatted else self.completion_to_prompt(prompt)

    # -- LlamaIndex's methods: the callbacks emit one event a method, so none calls another --

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The answer to a prompt."""
        return self._answer(self._formatted(prompt, formatted), **kwargs)

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The answer to a prompt."""
        return await asyncio.to_thread(self._answer, self._formatted(prompt, formatted), **kwargs)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """The answer to a prompt, as one chunk."""

        def chunks() -> CompletionResponseGen:
            yield _one_chunk(self._answer(self._formatted(prompt, formatted), **kwargs))

        return chunks()

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """The answer to a prompt, as one chunk."""

        async def chunks() -> CompletionResponseAsyncGen:
            text = self._formatted(prompt, formatted)
            yield _one_chunk(await asyncio.to_thread(self._answer, text, **kwargs))

        return chunks()

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The answer to messages."""
        return _as_chat(self._answer(self._prompt(messages), **kwargs))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The answer to messages."""
        return _as_chat(await asyncio.to_thread(self._answer, self._prompt(messages), **kwargs))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """The answer to messages, as one chunk."""

        def chunks() -> ChatResponseGen:
            yield _as_chat(_one_chunk(self._answer(self._prompt(messages), **kwargs)))

        return chunks()

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """The answer to messages, as one chunk."""

        async def chunks() -> ChatResponseAsyncGen:
            answer = await asyncio.to_thread(self._answer, self._prompt(messages), **kwargs)
            yield _as_chat(_one_chunk(answer))

        return chunks()


def _cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop text. The protocol has none, so they are applied here."""
    ends = [text.find(stop) for stop in stops if stop in text]
    return text[: min(ends)] if ends else text


def _one_chunk(answer: CompletionResponse) -> CompletionResponse:
    return CompletionResponse(text=answer.text, delta=answer.text, raw=answer.raw)


def _as_chat(answer: CompletionResponse) -> ChatResponse:
    message = ChatMessage(role=MessageRole.ASSISTANT, content=answer.text)
    return ChatResponse(message=message, delta=answer.delta, raw=answer.raw)


class GradientBaseModelLLM(_GradientLLM):
    """LLM of a base model, by its slug.

    Connects on first use; the token is in no repr, dump or pickle. A call accepts ``stop``, ``max_tokens``,
    temperature, top_k, top_p, auto_template, guidance and rag, and raises ConfigurationError for others and
    ServiceError when the request fails. The protocol has no streaming: streams give the whole answer as one
    chunk.

    Args:
        host: Address of the server. None: $GRADIENT_API_URL. One of them is required, since the hosted
            service is retired.
        access_token: Token of the server. None: $GRADIENT_ACCESS_TOKEN; unpickled copies use that one.
        **fields: The other attributes, and fields of LlamaIndex's ``CustomLLM`` such as ``system_prompt``.

    Attributes:
        base_model_slug: The base model's slug.
        max_tokens: Token limit of an answer, less than 512. None (default): the server's.
        context_window: Tokens of prompt and answer together; 4096 by default.
        temperature: Sampling temperature. None (default): the server's.
        top_k: Draw among the k likeliest tokens. None (default): the server's.
        top_p: Draw among the likeliest tokens of this probability. None (default): the server's.
        is_chat_model: Whether LlamaIndex sends messages, not text; False by default.
        max_retries: Retries of a call that gets no answer; 3 by default.
        timeout: Timeout of a request, in seconds; 120 by default.
        workspace_id: The workspace. None (default): $GRADIENT_WORKSPACE_ID.

    Raises:
        ConfigurationError: The host is missing or the retired one; on first use, token or workspace is
            missing.
        MissingDependencyError: On first use, the extra ``gradient`` is not installed.
    """

    base_model_slug: str = Field(description="The base model's slug.")

    def _name(self) -> str:
        return self.base_model_slug

    def _find_model(self, api: GradientApi, /) -> str:
        return api.base_model_id(self.base_model_slug)


class GradientModelAdapterLLM(_GradientLLM):
    """LLM of a fine-tuned model, by its adapter's id.

    Connects on first use; the token is in no repr, dump or pickle. A call accepts ``stop``, ``max_tokens``,
    temperature, top_k, top_p, auto_template, guidance and rag, and raises ConfigurationError for others and
    ServiceError when the request fails. The protocol has no streaming: streams give the whole answer as one
    chunk.

    Args:
        host: Address of the server. None: $GRADIENT_API_URL. One of them is required, since the hosted
            service is retired.
        access_token: Token of the server. None: $GRADIENT_ACCESS_TOKEN; unpickled copies use that one.
        **fields: The other attributes, and fields of LlamaIndex's ``CustomLLM`` such as ``system_prompt``.

    Attributes:
        model_adapter_id: The adapter's id.
        max_tokens: Token limit of an answer, less than 512. None (default): the server's.
        context_window: Tokens of prompt and answer together; 4096 by default.
        temperature: Sampling temperature. None (default): the server's.
        top_k: Draw among the k likeliest tokens. None (default): the server's.
        top_p: Draw among the likeliest tokens of this probability. None (default): the server's.
        is_chat_model: Whether LlamaIndex sends messages, not text; False by default.
        max_retries: Retries of a call that gets no answer; 3 by default.
        timeout: Timeout of a request, in seconds; 120 by default.
        workspace_id: The workspace. None (default): $GRADIENT_WORKSPACE_ID.

    Raises:
        ConfigurationError: The host is missing or the retired one; on first use, token or workspace is
            missing.
        MissingDependencyError: On first use, the extra ``gradient`` is not installed.
    """

    model_adapter_id: str = Field(description="The adapter's id.")

    def _name(self) -> str:
        return self.model_adapter_id
