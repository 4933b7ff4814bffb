"""LLM of a trained model behind a server (vLLM, SGLang, llama.cpp), with the prompts and bounds of its training."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ChatResponseAsyncGen, ChatResponseGen
from llama_index.core.prompts import BasePromptTemplate
from llama_index_instrumentation import get_dispatcher
from pydantic import BaseModel, Field

from ..errors import ConfigurationError
from ..formats.wire import schema_format
from ..local.model.adapter import read_folder_card
from ..local.model.chat_template import SystemForm, with_system_messages
from ..local.model.prompts import DEFAULT_SCHEMA_PROMPT, PromptForm, SchemaPrompt, ToolPrompt
from ..local.schema.bounds import AnswerBounds, bounded_schema, schema_key
from ..local.schema.text_order import with_free_keys
from .hosted import HostedOpenAILike
from .keys import ApiKey
from .local_calls import schema_reserve, trained_messages
from .server_confidence import structured_reply
from .structured import bare_prompt, parse_response, request_schema, source_texts, with_schema
from .tool_calls import ChatForm, ToolCalls, chat_form

__all__ = ["ServedLora", "served_llm"]

dispatcher = get_dispatcher(__name__)


class ServedLora(HostedOpenAILike):
    """LlamaIndex's ``OpenAILike`` with the prompts of training and a bounded schema for the server's grammar.

    The schema stands in the system message as in training; ``response_format`` holds the schema of the local
    grammar, stricter than the class's own, with the bounds of training. Answers that do not fit all the same
    raise StructuredAnswerError.

    Args:
        model: The model's name at the server.
        transport: How structured answers are requested: ``json_schema``, ``tools`` or ``text``.
            ``served_llm`` passes ``json_schema``.
        api_key: The key, stored privately: the attribute is always None. None: $OPENAI_API_KEY; unpickled
            copies use that one.
        **options: Fields of LlamaIndex's class, such as ``api_base`` and ``temperature``.

    Attributes:
        confidence: Whether structured answers come with their ``Trust``, by the server's log-probabilities; True by
            default.
        calibrations: How probabilities are calibrated for the answers to a schema, by its key.
        taggers: Taggers of the messages' words, by the key of the answers' schema: a second opinion on these.
        bounds: Bounds of lists and strings.
        chat_prompts: Whether prompts are LlamaIndex's chat prompts, as in training; True by default.
        system_messages: The form in which training's chat template took system messages: ``own`` (default),
            ``joined`` to one, or ``in_question``, at the start of the first one.
        schema_prompt: How prompts say the schema, as in training: ``compact`` (default), ``json`` or ``none``.
        reads_twice: Whether short questions stand twice in prompts of structured answers, as in training.
        tool_prompt: How tools and calls are written, as in training; ``own``: calls with tools are refused.
        trained_schemas: Schemas of the training rows.
        answer_classes: The classes of the training answers, as ``module:Class``, by the key of their schema.
        default_headers: Extra headers of each request; in no repr, dump or pickle.
    """

    confidence: bool = Field(default=True, description="Whether structured answers come with their trust.")
    bounds: AnswerBounds = Field(default_factory=AnswerBounds, description="Bounds of lists and strings.")
    chat_prompts: bool = Field(
        default=True, description="Whether prompts are LlamaIndex's chat prompts, as in training."
    )
    system_messages: SystemForm = Field(
        default="own", description="Form of system messages: own, joined or in_question."
    )
    schema_prompt: SchemaPrompt = Field(
        default=DEFAULT_SCHEMA_PROMPT, description="How prompts say the schema: compact, json or none."
    )
    reads_twice: bool = Field(default=False, description="Whether short questions stand twice.")
    tool_prompt: ToolPrompt | None = Field(default=None, description="How tools and calls are written.")
    answer_classes: dict[str, str] = Field(
        default_factory=dict, repr=False, description="Classes of the training answers, by schema."
    )
    trained_schemas: list[dict[str, Any]] = Field(
        default_factory=list, repr=False, description="Schemas of the training rows."
    )

    @classmethod
    def class_name(cls) -> str:
        """The class's name in LlamaIndex's dumps."""
        return "served_lora"

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
            StructuredAnswerError: The answer does not fit.
        """
        messages = self._extend_messages(self._as_trained(prompt).format_messages(**prompt_args))
        with structured_reply(output_cls) as reply:
            response = self.chat(messages, **with_schema(output_cls, llm_kwargs))
        answer = parse_response(output_cls, response, source_texts(messages))
        reply.remember(answer)
        return answer

    @dispatcher.span
    async def astructured_predict(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> BaseModel:
        """``structured_predict()`` for asyncio.

        Args:
            output_cls: Class of the answer.
            prompt: The prompt template.
            llm_kwargs: Keywords of the call, such as ``temperature``.
            **prompt_args: Variables of the template.

        Raises:
            StructuredAnswerError: As ``structured_predict()``.
        """
        messages = self._extend_messages(self._as_trained(prompt).format_messages(**prompt_args))
        with structured_reply(output_cls) as reply:
            response = await self.achat(messages, **with_schema(output_cls, llm_kwargs))
        answer = parse_response(output_cls, response, source_texts(messages))
        reply.remember(answer)
        return answer

    def _structured_stream_call(
        self, output_cls: Any, prompt: Any, llm_kwargs: Any = None, **prompt_args: Any
    ) -> Generator[Any, None, None]:
        yield from super()._structured_stream_call(
            output_cls, self._as_trained(prompt), llm_kwargs, **prompt_args
        )

    async def _structured_astream_call(
        self, output_cls: Any, prompt: Any, llm_kwargs: Any = None, **prompt_args: Any
    ) -> AsyncGenerator[Any, None]:
        stream: AsyncGenerator[Any, None] = await super()._structured_astream_call(
            output_cls, self._as_trained(prompt), llm_kwargs, **prompt_args
        )
        return stream

    def _as_trained(self, prompt: BasePromptTemplate) -> Any:
        """The chat prompt of a selector, if the training data had chat prompts."""
        return bare_prompt(prompt, self if self.chat_prompts else None)

    def _prepare_schema(
        self, llm_kwargs: dict[str, Any] | None, output_cls: type[BaseModel]
    ) -> dict[str, Any]:
        return with_schema(output_cls, llm_kwargs)

    def _asked(self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]) -> ChatForm:
        """How a chat is asked. Raises ConfigurationError for turns that training had in another form."""
        form = chat_form(messages, kwargs, self.trained_schemas)
        if self.tool_prompt == "own" and isinstance(form, ToolCalls) and form.tool is None:
            raise ConfigurationError(
                "tools: the adapter was trained on tool calls in the form of its base's chat template, and a response "
                "format would ask for another: ask the server itself, whose parser reads such calls, by LlamaIndex's "
                "OpenAILike with is_function_calling_model=True, or use LoraLLM, or train with tool_prompt='json'"
            )
        return form

    def _chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        form = self._asked(messages, kwargs)
        return form.response(super()._chat(form.messages, **form.keywords))

    async def _achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        form = self._asked(messages, kwargs)
        return form.response(await super()._achat(form.messages, **form.keywords))

    def _stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        form = self._asked(messages, kwargs)
        return form.responses(super()._stream_chat(form.messages, **form.keywords))

    async def _astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        form = self._asked(messages, kwargs)
        return form.aresponses(await super()._astream_chat(form.messages, **form.keywords))

    def _request(
        self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]
    ) -> tuple[Sequence[ChatMessage], dict[str, Any]]:
        return self._trained_messages(messages, kwargs), self._bounded(kwargs)

    def _trained_messages(
        self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]
    ) -> list[ChatMessage]:
        """The messages as in training: the schema, without bounds, at the end of the leading system message.

        They are what the local chat template got, as the server's may reject or leave out system messages.
        """
        schema = request_schema(kwargs.get("response_format"))
        plain = trained_messages(messages, schema, PromptForm(self.schema_prompt, self.reads_twice))
        return [ChatMessage(**message) for message in with_system_messages(plain, self.system_messages)]

    def _bounded(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The keywords with the grammar's schema, bounded, so that answers validate and end inside the limit."""
        schema = request_schema(kwargs.get("response_format"))
        sent = {name: value for name, value in kwargs.items() if name != "grammar_schema"}
        if schema is None:
            return sent
        name = re.sub(r"[^a-zA-Z0-9_-]", "_", kwargs["response_format"]["json_schema"].get("name", "answer"))
        key = schema_key(schema)
        bounded = bounded_schema(kwargs.get("grammar_schema", schema), key, self.bounds)
        if key in self.bounds.by_text:
            bounded, _ = with_free_keys(bounded)
        sent["response_format"] = schema_format(name, bounded)
        return sent


def served_llm(
    adapter: str | Path, *, model: str, api_base: str, api_key: ApiKey = None, **options: Any
) -> ServedLora:
    """The LLM of an adapter, or of a merged folder, that a server at ``api_base`` offers as ``model``.

    Needs the extra ``openai``.

    Args:
        adapter: Only its card is read, for the bounds, prompts and token limits of training.
        model: The model's name at the server.
        api_base: Address of the server.
        api_key: The key. None: $OPENAI_API_KEY; a server that asks for no key needs neither.
        **options: Fields of LlamaIndex's ``OpenAILike``; they override the card.

    Raises:
        ConfigurationError: The folder has no readable card.
    """
    card = read_folder_card(Path(adapter))
    as_trained: dict[str, Any] = {
        "bounds": card.bounds,
        "calibrations": card.calibrations,
        "taggers": card.taggers,
        "chat_prompts": card.chat_prompts,
        "system_messages": card.system_messages,
        "schema_prompt": card.schema_prompt,
        "reads_twice": card.reads_twice,
        "tool_prompt": card.tool_prompt,
        "trained_schemas": list(card.schemas),
        "answer_classes": card.answer_classes,
        "is_function_calling_model": True,
        "max_tokens": card.answer_tokens,
        "temperature": 0.0,
        "is_chat_model": True,
        "should_use_structured_outputs": True,
        "transport": "json_schema",
    }
    if card.thinking_switches:
        switches = dict.fromkeys(card.thinking_switches, card.thinking)
        as_trained["additional_kwargs"] = {"extra_body": {"chat_template_kwargs": switches}}
    if card.context_window is not None:
        # LlamaIndex packs texts into the window before the schema is added to the prompt.
        reserved = schema_reserve(card.context_window, card.answer_tokens, card.schema_tokens)
        as_trained["context_window"] = card.context_window - reserved
    return ServedLora(model=model, api_base=api_base, api_key=api_key, **{**as_trained, **options})
