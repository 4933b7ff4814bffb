"""Structured calls of a local model: an object, a stream of objects, or an LLM for one class."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.instrumentation.events.llm import (
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictStartEvent,
)
from llama_index.core.program.utils import process_streaming_objects
from llama_index.core.prompts import BasePromptTemplate
from llama_index_instrumentation import get_dispatcher
from pydantic import BaseModel, Field

from ..answer_values import class_schema
from ..local.schema.bounds import AnswerBounds, schema_key
from ..trust.calibration import Calibration
from ..trust.tagger import WordTagger
from .answer_source import AnswerSource
from .call_places import Place
from .structured import StructuredCall, bare_prompt
from .structured_lora import SchemaRoomLLM
from .trained_classes import only_class

__all__ = ["StructuredAnswersLLM"]

dispatcher = get_dispatcher(__name__)


class StructuredAnswersLLM(SchemaRoomLLM):
    """What ``LoraLLM`` adds to a chat model: structured calls by ``response_format``, with a second attempt.

    Attributes:
        constrained: Hold structured answers to their schema by a grammar; True by default.
        bounds: Bounds of lists and strings.
        grounded: Hold values that training answers copied from the messages to the texts of the call's messages;
            True by default.
        chat_prompts: Whether prompts are LlamaIndex's chat prompts, as in training; True by default.
        confidence: Whether structured answers come with their ``Trust``, in ``raw["trust"]``; True by default.
        calibrations: How probabilities are calibrated for the answers to a schema, by its key.
        taggers: Taggers of the messages' words, by the key of the answers' schema: a second opinion on these.
        answer_classes: The classes of the training answers, as ``module:Class``, by the key of their schema.
    """

    constrained: bool = Field(
        default=True, description="Hold structured answers to their schema by a grammar."
    )
    bounds: AnswerBounds = Field(default_factory=AnswerBounds, description="Bounds of lists and strings.")
    grounded: bool = Field(
        default=True, description="Hold values that training copied from the messages to those of the call."
    )
    chat_prompts: bool = Field(
        default=True, description="Whether prompts are LlamaIndex's chat prompts, as in training."
    )

    confidence: bool = Field(default=True, description="Whether structured answers come with their trust.")
    calibrations: dict[str, Calibration] = Field(
        default_factory=dict, repr=False, description="How probabilities are calibrated, by schema."
    )
    taggers: dict[str, WordTagger] = Field(
        default_factory=dict, repr=False, description="Taggers of the messages' words, by schema."
    )
    answer_classes: dict[str, str] = Field(
        default_factory=dict, repr=False, description="Classes of the training answers, by schema."
    )

    def trained_class(self) -> type[BaseModel]:
        """The class of the training answers, which must have been imported.

        Raises:
            ConfigurationError: It is not imported or has changed, or there is not exactly one; the message names it.
        """
        return only_class(self.answer_classes, str(getattr(self, "adapter", None) or "the LLM"))

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
        call, messages = self._structured_call(output_cls, llm_kwargs, prompt, prompt_args)
        with self._place() as place:
            for keywords in call.attempts():
                with place.shared():
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
        call, messages = self._structured_call(output_cls, llm_kwargs, prompt, prompt_args)
        with self._place() as place:
            for keywords in call.attempts():
                with place.shared():
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
        call, messages = self._structured_call(output_cls, llm_kwargs, prompt, prompt_args)
        place = self._place()

        def partials() -> Generator[Any, None, None]:
            with place:
                for keywords in call.attempts():
                    partial: Any = None
                    response: ChatResponse | None = None
                    with place.shared():
                        responses = self.stream_chat(messages, **keywords)
                    for response in responses:
                        if _is_reasoning(response):
                            continue
                        partial = _partial(response, output_cls, partial)
                        yield partial
                    call.record(response)
            yield call.result()

        return partials()

    async def _structured_astream_call(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        call, messages = self._structured_call(output_cls, llm_kwargs, prompt, prompt_args)

        place = self._place()

        async def partials() -> AsyncGenerator[Any, None]:
            with place:
                for keywords in call.attempts():
                    partial: Any = None
                    response: ChatResponse | None = None
                    with place.shared():
                        responses = await self.astream_chat(messages, **keywords)
                    async for response in responses:
                        if _is_reasoning(response):
                            continue
                        partial = _partial(response, output_cls, partial)
                        yield partial
                    call.record(response)
            yield call.result()

        return partials()

    def _place(self) -> Place:
        """The place of a call among those that the LLM answers at a time."""
        return Place()

    def _messages(self, prompt: BasePromptTemplate, prompt_args: Mapping[str, Any]) -> list[ChatMessage]:
        """The prompt's messages, in the form (chat or plain) in which the training data had them."""
        bare = bare_prompt(prompt, self if self.chat_prompts else None)
        return self._extend_messages(bare.format_messages(**prompt_args))

    def _answer_source(
        self, messages: Sequence[ChatMessage], schema: Mapping[str, Any] | None
    ) -> AnswerSource | None:
        """Where the values of an answer stand; None where no value is grounded and trust is not asked for."""
        if schema is None or not messages:
            return None
        applies = self.grounded and self.constrained and bool(self.bounds.grounded)
        key = schema_key(schema)
        grounded = self.bounds.grounded.get(key) if applies else None
        if not (grounded or self.confidence):
            return None
        return AnswerSource.of(messages, grounded, schema, self.taggers.get(key))

    def _calibration(self, schema: Mapping[str, Any] | None) -> Calibration | None:
        """How the probabilities of answers to a schema are calibrated; None where trust is not asked for."""
        if schema is None or not self.confidence:
            return None
        return self.calibrations.get(schema_key(schema), Calibration())

    def _structured_call(
        self,
        output_cls: type[BaseModel],
        llm_kwargs: Mapping[str, Any] | None,
        prompt: BasePromptTemplate,
        prompt_args: Mapping[str, Any],
    ) -> tuple[StructuredCall, list[ChatMessage]]:
        messages = self._messages(prompt, prompt_args)
        bounds = self.bounds if self.constrained else None
        calibration = self._calibration(class_schema(output_cls))
        return StructuredCall(output_cls, llm_kwargs, bounds, messages, calibration), messages


def _emit_start(output_cls: type[BaseModel], prompt: BasePromptTemplate, args: dict[str, Any]) -> None:
    dispatcher.event(
        LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=args)
    )


def _is_reasoning(response: ChatResponse) -> bool:
    """Whether a chunk is of what the model writes before its answer."""
    return not response.message.content and "thinking_delta" in response.additional_kwargs


def _partial(response: ChatResponse, output_cls: type[BaseModel], previous: Any) -> Any:
    """The object as far as its JSON goes; ``previous``, the one before, where that cannot be parsed yet."""
    return process_streaming_objects(
        response, output_cls, cur_objects=None if previous is None else [previous]
    )
