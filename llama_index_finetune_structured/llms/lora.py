"""LoraLLM: a local, fine-tuned model as a LlamaIndex LLM."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    TextBlock,
)
from llama_index.core.instrumentation.events.llm import (
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictStartEvent,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import LLM
from llama_index.core.program.utils import process_streaming_objects
from llama_index.core.prompts import BasePromptTemplate
from llama_index_instrumentation import get_dispatcher
from pydantic import BaseModel, Field, PrivateAttr

from ..background import result_of
from ..errors import ConfigurationError, MissingDependencyError
from ..example import Message
from ..local.model.adapter import AdapterCard, find_adapter, read_card, read_folder_card, read_matching_card
from ..local.model.base_models import DEFAULT_BASE_MODEL, context_window, resolve
from ..local.model.prompts import messages_with_schema, render_prompt
from ..local.schema.bounds import AnswerBounds, schema_key
from .structured import StructuredCall, request_schema

if TYPE_CHECKING:
    from ..local.generate.loaded_models import LocalModel
    from ..local.generate.request import GenerationRequest, GenerationResult

__all__ = ["LoraLLM"]

dispatcher = get_dispatcher(__name__)
_ANSWER_TOKENS = 512  # chosen: default for a base model alone; an adapter has its own from training


class LoraLLM(LLM):
    """A base model on this machine, with or without an adapter of ``LoraFinetuneEngine``.

    Concurrent calls are generated in one batch. Structured calls (``structured_predict``, query engines with
    ``output_cls``, ``as_structured_llm``) have the schema in their prompt exactly as in training, and a
    grammar holds the answer to it unless ``constrained`` is False. An answer that the grammar allows and a
    validator refuses gets one more attempt; answers that do not fit raise StructuredAnswerError, which names
    field and reason. Calls accept ``max_new_tokens`` (or ``max_tokens``), ``temperature``, ``top_k``,
    ``top_p``, ``seed`` and ``response_format``. Weights are loaded on first use and shared by all objects
    with the same weights and ``batch_size``. Needs the extra ``local``.

    Text is text: what stands in messages, prompts and schemas never becomes a control token such as
    ``<|im_end|>``. Only a completion prompt with ``formatted=True`` is sent as it is, control tokens included.

    Args:
        **kwargs: The attributes below, and fields of LlamaIndex's ``LLM`` such as ``system_prompt``.

    Attributes:
        adapter: Folder of the adapter; None (default): base model only.
        base_model: Base model: name, folder, .gguf or hub id; ``smollm2-135m-instruct`` by default.
        max_new_tokens: Token limit of an answer; 512 by default.
        temperature: 0 (default): always the likeliest token (greedy).
        top_k: Draw among the k likeliest tokens; 0 (default): among all.
        top_p: Draw among the likeliest tokens of this probability; 1 by default.
        constrained: Hold structured answers to their schema by a grammar; True by default.
        batch_size: Most calls generated together in one batch; 8 by default.
        bounds: Bounds of lists and strings.
        chat_prompts: Whether prompts are LlamaIndex's chat prompts, as in training; True by default.

    Raises:
        ConfigurationError: There is no such base model; ``adapter`` is no adapter folder, or was trained on
            another base. Of a call: the prompt fills the context window, or a message has a block that is not
            text.
        MissingDependencyError: On first use, the extra ``local`` is not installed.
    """

    adapter: Path | None = Field(default=None, description="Folder of the adapter; None: base model only.")
    base_model: str = Field(
        default=DEFAULT_BASE_MODEL, description="Base model: name, folder, .gguf or hub id."
    )
    max_new_tokens: int = Field(default=_ANSWER_TOKENS, gt=0, description="Token limit of an answer.")
    temperature: float = Field(default=0.0, ge=0, description="0: always the likeliest token (greedy).")
    top_k: int = Field(default=0, ge=0, description="Draw among the k likeliest tokens; 0: among all.")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Draw among the likeliest tokens of this probability."
    )
    constrained: bool = Field(
        default=True, description="Hold structured answers to their schema by a grammar."
    )
    batch_size: int = Field(default=8, gt=0, description="Most calls generated together in one batch.")
    bounds: AnswerBounds = Field(default_factory=AnswerBounds, description="Bounds of lists and strings.")
    chat_prompts: bool = Field(
        default=True, description="Whether prompts are LlamaIndex's chat prompts, as in training."
    )

    _context_window: int = PrivateAttr()
    _prompt_date: str | None = PrivateAttr(default=None)
    _model: LocalModel | None = PrivateAttr(default=None)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        base = resolve(self.base_model)
        if self.adapter is not None:
            self._prompt_date = read_matching_card(self.adapter, base).prompt_date
        self._context_window = context_window(base)

    @classmethod
    def from_adapter(cls, adapter: str | Path, **kwargs: Any) -> LoraLLM:
        """The LLM of an adapter's or a finished run's folder, with the settings of training.

        Args:
            adapter: The folder.
            **kwargs: Attributes of the class; they override those of training.

        Raises:
            ConfigurationError: The folder holds no adapter or an unfinished run, or the base is not found.
        """
        folder = find_adapter(Path(adapter))
        return cls(**{"adapter": folder, **_settings_of(read_card(folder)), **kwargs})

    @classmethod
    def from_merged(cls, folder: str | Path, **kwargs: Any) -> LoraLLM:
        """The LLM of a merged folder that ``export_adapter`` wrote, with the settings of training.

        Args:
            folder: The merged folder.
            **kwargs: Attributes of the class; they override those of training.

        Raises:
            ConfigurationError: The folder is not such an export.
        """
        return cls(**{**_settings_of(read_folder_card(Path(folder))), "base_model": str(folder), **kwargs})

    @classmethod
    def class_name(cls) -> str:
        """The class's name in LlamaIndex's dumps."""
        return "lora_llm"

    @property
    def metadata(self) -> LLMMetadata:
        """Context window, token limit and name, as LlamaIndex reads them."""
        return LLMMetadata(
            context_window=self._context_window,
            num_output=self.max_new_tokens,
            is_chat_model=True,
            model_name=str(self.adapter or self.base_model),
        )

    def prompt_token_ids(
        self, messages: Sequence[ChatMessage], output_cls: type[BaseModel] | None = None
    ) -> list[int]:
        """The token ids that a call with these messages sends to the model.

        Args:
            messages: Messages of text only.
            output_cls: Class of a structured call, whose schema is in the prompt. None: a plain call.

        Raises:
            ConfigurationError: A message has a block that is not text.
            DatasetError: The model's chat template rejects the messages, or leaves the text of one out.
            MissingDependencyError: The extra ``local`` is not installed.
        """
        schema = None if output_cls is None else output_cls.model_json_schema()
        return self._prompt(messages, schema)

    # Chat and completion

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The answer to messages."""
        return self._chat_response(*self._generate(self._request(messages, kwargs)))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The answer to messages."""
        request = await asyncio.to_thread(self._request, messages, kwargs)
        return self._chat_response(*await self._agenerate(request))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """The answer to messages, as a stream."""
        chunks = self._stream(self._request(messages, kwargs))
        return (_chat_chunk(text, delta) for text, delta in chunks)

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """The answer to messages, as a stream."""
        chunks = self._astream(await asyncio.to_thread(self._request, messages, kwargs))
        return (_chat_chunk(text, delta) async for text, delta in chunks)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The answer to a prompt."""
        return self._completion(*self._generate(self._completion_request(prompt, formatted, kwargs)))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The answer to a prompt."""
        request = await asyncio.to_thread(self._completion_request, prompt, formatted, kwargs)
        return self._completion(*await self._agenerate(request))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """The answer to a prompt, as a stream."""
        chunks = self._stream(self._completion_request(prompt, formatted, kwargs))
        return (CompletionResponse(text=text, delta=delta) for text, delta in chunks)

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """The answer to a prompt, as a stream."""
        request = await asyncio.to_thread(self._completion_request, prompt, formatted, kwargs)
        return (CompletionResponse(text=text, delta=delta) async for text, delta in self._astream(request))

    # Structured answers

    @dispatcher.span
    def structured_predict(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> BaseModel:
        """The answer as ``output_cls``.

        Args:
            output_cls: Class of the answer.
            prompt: The prompt template.
            llm_kwargs: Keywords of the call, such as ``temperature``.
            **prompt_args: Variables of the template.

        Raises:
            StructuredAnswerError: The answer does not fit, and the second attempt neither.
        """
        _emit_start(output_cls, prompt, prompt_args)
        call, messages = self._structured_call(output_cls, llm_kwargs), self._messages(prompt, prompt_args)
        for keywords in call.attempts():
            call.record(self.chat(messages, **keywords))
        result = call.result()
        dispatcher.event(LLMStructuredPredictEndEvent(output=result))
        return result

    @dispatcher.span
    async def astructured_predict(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> BaseModel:
        """``structured_predict()`` for asyncio; concurrent calls share batches.

        Args:
            output_cls: Class of the answer.
            prompt: The prompt template.
            llm_kwargs: Keywords of the call, such as ``temperature``.
            **prompt_args: Variables of the template.

        Raises:
            StructuredAnswerError: As ``structured_predict()``.
        """
        _emit_start(output_cls, prompt, prompt_args)
        call, messages = self._structured_call(output_cls, llm_kwargs), self._messages(prompt, prompt_args)
        for keywords in call.attempts():
            call.record(await self.achat(messages, **keywords))
        result = call.result()
        dispatcher.event(LLMStructuredPredictEndEvent(output=result))
        return result

    def _structured_stream_call(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        call, messages = self._structured_call(output_cls, llm_kwargs), self._messages(prompt, prompt_args)
        for keywords in call.attempts():
            partial: Any = None
            response: ChatResponse | None = None
            for response in self.stream_chat(messages, **keywords):
                partial = _partial(response, output_cls, partial)
                yield partial
            call.record(response)
        yield call.result()

    async def _structured_astream_call(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        call, messages = self._structured_call(output_cls, llm_kwargs), self._messages(prompt, prompt_args)

        async def partials() -> AsyncGenerator[Any, None]:
            for keywords in call.attempts():
                partial: Any = None
                response: ChatResponse | None = None
                async for response in await self.astream_chat(messages, **keywords):
                    partial = _partial(response, output_cls, partial)
                    yield partial
                call.record(response)
            yield call.result()

        return partials()

    def _messages(self, prompt: BasePromptTemplate, prompt_args: Mapping[str, Any]) -> list[ChatMessage]:
        """The prompt's messages, in the form (chat or plain) in which the training data had them."""
        llm = self if self.chat_prompts else None
        return self._extend_messages(prompt.format_messages(llm=llm, **prompt_args))

    def _structured_call(
        self, output_cls: type[BaseModel], llm_kwargs: Mapping[str, Any] | None
    ) -> StructuredCall:
        return StructuredCall(output_cls, llm_kwargs, self.bounds if self.constrained else None)

    # From messages to tokens and back

    @property
    def _loaded(self) -> LocalModel:
        if self._model is None:
            try:
                from ..local.generate.loaded_models import load_local_model
            except ImportError as error:
                raise MissingDependencyError(error.name or "torch", "local", "LoraLLM") from error
            self._model = load_local_model(self.base_model, self.adapter, self.batch_size)
        return self._model

    def _request(self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]) -> GenerationRequest:
        schema = request_schema(kwargs.get("response_format"))
        return self._request_of_tokens(self._prompt(messages, schema), schema, kwargs)

    def _completion_request(
        self, prompt: str, formatted: bool, kwargs: Mapping[str, Any]
    ) -> GenerationRequest:
        """A plain prompt becomes a user message; a ``formatted`` one is sent unchanged, control tokens included."""
        if not formatted:
            return self._request([ChatMessage(role=MessageRole.USER, content=prompt)], kwargs)
        ids = self._loaded.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        return self._request_of_tokens(ids, request_schema(kwargs.get("response_format")), kwargs)

    def _prompt(self, messages: Sequence[ChatMessage], schema: Mapping[str, Any] | None) -> list[int]:
        """Token ids of the prompt, as in training: by the chat template, the schema in the system message."""
        return render_prompt(
            self._loaded.tokenizer,
            messages_with_schema([_message(m) for m in messages], schema),
            date=self._prompt_date,
        )

    def _request_of_tokens(
        self, prompt: Sequence[int], schema: Mapping[str, Any] | None, kwargs: Mapping[str, Any]
    ) -> GenerationRequest:
        from ..local.generate.request import GenerationRequest, Sampling
        from ..local.model.devices import release_idle_threads

        room = self._context_window - len(prompt)
        if room < 1:
            raise ConfigurationError(
                f"the prompt has {len(prompt)} tokens and the model's context window is {self._context_window}: "
                "retrieve fewer or smaller chunks"
            )
        limit = int(kwargs.get("max_new_tokens") or kwargs.get("max_tokens") or self.max_new_tokens)
        request = GenerationRequest(
            prompt=tuple(prompt),
            max_new_tokens=min(limit, room),
            sampling=Sampling(
                temperature=float(kwargs.get("temperature", self.temperature)),
                top_k=int(kwargs.get("top_k", self.top_k)),
                top_p=float(kwargs.get("top_p", self.top_p)),
                seed=kwargs.get("seed"),
            ),
            grammar=(
                self._loaded.grammar(kwargs.get("grammar_schema", schema), schema_key(schema), self.bounds)
                if schema is not None and self.constrained
                else None
            ),
        )
        release_idle_threads()  # those of this thread, which may have loaded the model
        return request

    def _generate(self, request: GenerationRequest) -> tuple[GenerationRequest, GenerationResult]:
        try:
            return request, result_of(self._loaded.engine.submit(request))
        finally:
            request.cancelled = True

    async def _agenerate(self, request: GenerationRequest) -> tuple[GenerationRequest, GenerationResult]:
        try:
            return request, await asyncio.wrap_future(self._loaded.engine.submit(request))
        finally:
            request.cancelled = True

    def _stream(self, request: GenerationRequest) -> Any:
        from ..local.generate.streaming import stream

        return stream(self._loaded.engine, self._loaded.tokenizer, request)

    def _astream(self, request: GenerationRequest) -> Any:
        from ..local.generate.streaming import astream

        return astream(self._loaded.engine, self._loaded.tokenizer, request)

    def _chat_response(self, request: GenerationRequest, result: GenerationResult) -> ChatResponse:
        completion = self._completion(request, result)
        message = ChatMessage(role=MessageRole.ASSISTANT, content=completion.text)
        return ChatResponse(message=message, raw=completion.raw)

    def _completion(self, request: GenerationRequest, result: GenerationResult) -> CompletionResponse:
        text = self._loaded.tokenizer.decode(result.tokens, skip_special_tokens=True)
        usage = {"prompt_tokens": len(request.prompt), "completion_tokens": len(result.tokens)}
        return CompletionResponse(text=text, raw={"usage": usage, "finish_reason": result.finish_reason})


def _settings_of(card: AdapterCard) -> dict[str, Any]:
    return {
        "base_model": card.base_model,
        "bounds": card.bounds,
        "chat_prompts": card.chat_prompts,
        "max_new_tokens": card.answer_tokens,
    }


def _emit_start(output_cls: type[BaseModel], prompt: BasePromptTemplate, args: dict[str, Any]) -> None:
    dispatcher.event(
        LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=args)
    )


def _partial(response: ChatResponse, output_cls: type[BaseModel], previous: Any) -> Any:
    """The object as far as its JSON goes; ``previous``, the one before, where that cannot be parsed yet."""
    return process_streaming_objects(
        response, output_cls, cur_objects=None if previous is None else [previous]
    )


def _message(message: ChatMessage) -> Message:
    if any(not isinstance(block, TextBlock) for block in message.blocks):
        raise ConfigurationError("a message has a block that is not text; a local model reads text only")
    return Message(role=message.role.value, content=message.content or "")


def _chat_chunk(text: str, delta: str) -> ChatResponse:
    return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=text), delta=delta)
