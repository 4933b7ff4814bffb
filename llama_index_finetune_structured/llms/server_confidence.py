"""LLMs of OpenAI's protocol whose structured answers come with their trust, by the server's log-probabilities."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    ToolCallBlock,
)
from openai import APIStatusError
from pydantic import BaseModel, Field, PrivateAttr, ValidationError

from ..answer_values import class_schema
from ..errors import DatasetError
from ..example import compact_json
from ..local.schema.bounds import schema_key
from ..printable import package_logger
from ..stated_rules import broken_rules
from ..trust.answer_trust import Trust
from ..trust.calibration import Calibration
from ..trust.lookup import TRUST, remember_trust
from ..trust.server_tokens import trust_in_reply
from ..trust.tagger import WordTagger
from .answer_source import AnswerSource
from .masked_errors import MaskedErrors
from .structured import with_problems
from .synthesized_answers import keep_trust

__all__ = ["ServerConfidence", "StructuredReply", "structured_reply"]

_log = package_logger(__name__)
_TOP_LOGPROBS = 20  # the most that OpenAI's API and vLLM's default allow
# Not allowed for this model (403, OpenAI's reasoning models), unknown or too many (400, 422), not implemented (501).
_REFUSALS = (400, 403, 422, 501)
_END: Any = object()  # of a stream


@dataclass
class StructuredReply:
    """A structured call in progress. ``schema``: of its class.

    ``trust``: in its last reply, once that is known. ``messages``: of the last chat call.
    """

    schema: Mapping[str, Any]
    trust: Trust | None = None
    messages: Sequence[ChatMessage] = ()
    calibration: Calibration | None = None

    def remember(self, answer: Any) -> None:
        """Keep the trust in the object that was made of the reply."""
        if self.trust is not None and isinstance(answer, BaseModel):
            problems = [*self.trust.problems, *broken_rules(answer)]
            trust = with_problems(self.trust, problems, self.calibration)
            keep_trust(answer, trust, self.messages)


_structured: ContextVar[StructuredReply | None] = ContextVar("structured_reply", default=None)


@contextmanager
def structured_reply(output_cls: type[BaseModel]) -> Iterator[StructuredReply]:
    """Chat calls that are begun in this block are for an object of ``output_cls``."""
    reply = StructuredReply(class_schema(output_cls))
    token = _structured.set(reply)
    try:
        yield reply
    finally:
        _structured.reset(token)


class ServerConfidence(MaskedErrors):
    """Base of the hosted LLMs: asks for log-probabilities and puts the trust into ``additional_kwargs`` of responses.

    A server that refuses them is asked without from then on. Replies without them, tool calls among them, have a trust
    without probabilities.
    """

    confidence: bool = Field(default=False, description="Whether structured answers come with their trust.")
    calibrations: dict[str, Calibration] = Field(
        default_factory=dict, repr=False, description="How probabilities are calibrated, by schema."
    )
    taggers: dict[str, WordTagger] = Field(
        default_factory=dict, repr=False, description="Taggers of the messages' words, by schema."
    )
    _lacks_logprobs: bool = PrivateAttr(default=False)

    def structured_predict(self, output_cls: type[Any], prompt: Any, *args: Any, **kwargs: Any) -> Any:
        """LlamaIndex's ``structured_predict``, whose object ``trust_of`` knows.

        Args:
            output_cls: Class of the answer.
            prompt: The prompt template.
            *args: As in LlamaIndex's class.
            **kwargs: As in LlamaIndex's class.
        """
        with structured_reply(output_cls) as reply:
            answer = super().structured_predict(output_cls, prompt, *args, **kwargs)
        reply.remember(answer)
        return answer

    async def astructured_predict(self, output_cls: type[Any], prompt: Any, *args: Any, **kwargs: Any) -> Any:
        """``structured_predict()`` for asyncio.

        Args:
            output_cls: Class of the answer.
            prompt: The prompt template.
            *args: As in LlamaIndex's class.
            **kwargs: As in LlamaIndex's class.
        """
        with structured_reply(output_cls) as reply:
            answer = await super().astructured_predict(output_cls, prompt, *args, **kwargs)
        reply.remember(answer)
        return answer

    def _structured_stream_call(
        self, output_cls: type[Any], prompt: Any, *args: Any, **kwargs: Any
    ) -> Generator[Any, None, None]:
        with closing(super()._structured_stream_call(output_cls, prompt, *args, **kwargs)) as stream:
            with structured_reply(output_cls) as reply:  # the call is begun with the first object
                answer = next(stream, _END)
            while answer is not _END:
                reply.remember(answer)
                yield answer
                answer = next(stream, _END)

    async def _structured_astream_call(
        self, output_cls: type[Any], prompt: Any, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        with structured_reply(output_cls) as reply:
            stream = await super()._structured_astream_call(output_cls, prompt, *args, **kwargs)

        async def objects() -> AsyncGenerator[Any, None]:
            async with aclosing(stream):
                token = _structured.set(reply)
                try:
                    answer = await anext(stream, _END)
                finally:
                    _structured.reset(token)
                while answer is not _END:
                    reply.remember(answer)
                    yield answer
                    answer = await anext(stream, _END)

        return objects()

    def _request(
        self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]
    ) -> tuple[Sequence[ChatMessage], dict[str, Any]]:
        """The messages and keywords of a chat call as they are sent."""
        return messages, kwargs

    def _chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        reply = self._reply(messages, kwargs)
        messages, kwargs = self._request(messages, kwargs)
        try:
            response = super()._chat(messages, **{**reply.logprobs, **kwargs})
        except Exception as error:
            if not reply.is_refused(error):
                raise
            response = super()._chat(messages, **kwargs)
            self._remember_refusal(error)
        return reply.with_trust(response)

    async def _achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        reply = self._reply(messages, kwargs)
        messages, kwargs = self._request(messages, kwargs)
        try:
            response = await super()._achat(messages, **{**reply.logprobs, **kwargs})
        except Exception as error:
            if not reply.is_refused(error):
                raise
            response = await super()._achat(messages, **kwargs)
            self._remember_refusal(error)
        return reply.with_trust(response)

    def _stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        reply = self._reply(messages, kwargs)
        messages, kwargs = self._request(messages, kwargs)
        ask = super()._stream_chat

        def chunks() -> ChatResponseGen:
            stream: Any = ask(messages, **{**reply.logprobs, **kwargs})
            try:
                chunk = next(stream, _END)  # the request is sent with the first one
            except Exception as error:
                if not reply.is_refused(error):
                    raise
                stream = ask(messages, **kwargs)
                chunk = next(stream, _END)
                self._remember_refusal(error)
            with closing(stream):
                while chunk is not _END:
                    yield reply.with_trust(chunk)
                    chunk = next(stream, _END)

        return chunks()

    async def _astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        reply = self._reply(messages, kwargs)
        messages, kwargs = self._request(messages, kwargs)
        ask = super()._astream_chat

        async def chunks() -> ChatResponseAsyncGen:
            stream: Any = await ask(messages, **{**reply.logprobs, **kwargs})
            try:
                chunk = await anext(stream, _END)
            except Exception as error:
                if not reply.is_refused(error):
                    raise
                stream = await ask(messages, **kwargs)
                chunk = await anext(stream, _END)
                self._remember_refusal(error)
            async with aclosing(stream):
                while chunk is not _END:
                    yield reply.with_trust(chunk)
                    chunk = await anext(stream, _END)

        return chunks()

    def _reply(self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]) -> _Reply:
        """What is asked and kept for one chat call."""
        call, sent = _structured.get(), self._get_model_kwargs(**kwargs)
        if not self.confidence or not (call or sent.get("response_format")):
            return _Reply()
        schema = call.schema if call else _schema_in(sent["response_format"])
        calibration, tagger = Calibration(), None
        if schema is not None and (self.calibrations or self.taggers):
            key = schema_key(schema)
            calibration, tagger = self.calibrations.get(key, calibration), self.taggers.get(key)
        # tools: llama.cpp refuses both in a stream, and OpenAI's API gives none for calls
        is_asked = not (sent.get("tools") or sent.get("logprobs") or self._lacks_logprobs)
        return _Reply(
            calibration,
            call,
            logprobs={"logprobs": True, "top_logprobs": self.top_logprobs or _TOP_LOGPROBS}
            if is_asked
            else {},
            is_greedy=sent.get("temperature") == 0,
            model=self.model,
            messages=messages,
            schema=schema,
            tagger=tagger,
        )

    def _remember_refusal(self, error: Exception) -> None:
        if not self._lacks_logprobs:
            self._lacks_logprobs = True
            _log.warning(
                "%s: the server gives no logprobs, so its answers have no probabilities; confidence=False does not "
                "ask for them: %s",
                self.model,
                error,
            )


@dataclass
class _Reply:
    """The trust in the reply of one chat call; ``calibration`` None: it is not asked for.

    ``logprobs``: the keywords that ask for log-probabilities. ``tokens``: those that a stream sent so far.
    """

    calibration: Calibration | None = None
    call: StructuredReply | None = None
    logprobs: dict[str, Any] = field(default_factory=dict)
    is_greedy: bool = False
    model: str = ""
    messages: Sequence[ChatMessage] = ()
    schema: Mapping[str, Any] | None = None
    tagger: WordTagger | None = None
    tokens: list[Any] = field(default_factory=list)
    trust: Trust | None = None

    def is_refused(self, error: Exception) -> bool:
        """Whether the call is repeated without log-probabilities, which LlamaIndex may also fail to read."""
        refused = isinstance(error, APIStatusError) and error.status_code in _REFUSALS
        return bool(self.logprobs) and (refused or isinstance(error, ValidationError))

    def with_trust(self, response: ChatResponse) -> ChatResponse:
        """A response, or a chunk, with the trust where the reply is complete."""
        if self.calibration is None:
            return response
        if choices := getattr(response.raw, "choices", None):
            self.tokens += getattr(choices[0].logprobs, "content", None) or ()
            if choices[0].finish_reason is not None:
                self.trust = self._complete(response.message, self.calibration)
        if self.trust is not None:
            response.additional_kwargs[TRUST] = self.trust.model_dump(mode="json")
            remember_trust(response, self.trust)
            if self.call is not None:
                self.call.trust, self.call.messages = self.trust, self.messages
                self.call.calibration = self.calibration
        return response

    def _complete(self, message: ChatMessage, calibration: Calibration) -> Trust | None:
        calls = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
        if len(calls) > 1:
            return None
        text, tokens = message.content or "", self.tokens
        if calls:
            arguments = calls[0].tool_kwargs
            text, tokens = arguments if isinstance(arguments, str) else compact_json(arguments), []
        trust = trust_in_reply(text, tokens, is_greedy=self.is_greedy)
        if trust is None:
            return None
        trust = trust.model_copy(update={"answered_by": self.model})
        with suppress(DatasetError):  # messages with blocks that are not text
            source = AnswerSource.of(self.messages, None, self.schema, self.tagger)
            trust = source.evidence(trust, text)
            trust = trust.model_copy(update={"problems": source.problems(text)})
        return trust if trust.tokens is None else calibration.applied(trust)


def _schema_in(response_format: Any) -> Mapping[str, Any] | None:
    """The schema in a ``response_format``; None where it has none."""
    for key in ("json_schema", "schema"):
        response_format = response_format.get(key) if isinstance(response_format, Mapping) else None
    return response_format if isinstance(response_format, Mapping) else None
