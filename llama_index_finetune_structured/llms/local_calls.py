"""Calls of a local model: from messages and options to a generation request, and from its tokens to a response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    ContentBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
)
from pydantic import ValidationError

from ..background import aresult_of, result_of
from ..errors import ConfigurationError, DatasetError, PromptTooLongError
from ..example import Message, compact_json
from ..formats.wire import message_of
from ..jsonl import require_utf8
from ..local.model.prompts import PromptForm, messages_with_schema, own_tools, render_prompt, require_short
from ..trust.answer_trust import Trust, trust_in_tokens
from ..trust.lookup import TRUST, note_answer
from ..trust.tokens import AnswerToken
from .answer_source import AnswerSource
from .call_options import CallOptions
from .own_turns import OwnTurns

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ..local.generate.grammar import AnswerGrammar
    from ..local.generate.loaded_models import LocalModel
    from ..local.generate.reasoning import ReasoningLimit
    from ..local.generate.request import GenerationRequest, GenerationResult
    from ..local.generate.stop_texts import StopTexts
    from ..local.generate.streaming import Chunk
    from ..trust.calibration import Calibration

__all__ = [
    "LocalCall",
    "as_chat",
    "finished_trust",
    "plain_message",
    "prompt_ids",
    "reasoning_fields",
    "require_encodable",
    "schema_reserve",
    "thinking_blocks",
    "too_long_with_schema",
    "trained_messages",
    "usage_of",
]

_SCHEMA_TOKENS = 1024  # chosen: room for a class of some twenty described fields


@dataclass(frozen=True)
class LocalCall:
    """One call of a loaded model. Each may be generated once, in one of four ways.

    ``source``: the messages' texts; None: the prompt has none, or nobody asks for them. ``calibration``: of the trust
    in the answer; None: how sure it is is not asked. ``turns``: reads the answer, a turn in the form of the base's chat
    template, as JSON; None: it is text.
    """

    model: LocalModel
    request: GenerationRequest
    stops: StopTexts
    source: AnswerSource | None = None
    calibration: Calibration | None = None
    turns: OwnTurns | None = None

    @classmethod
    def of(
        cls,
        model: LocalModel,
        prompt: Sequence[int],
        options: CallOptions,
        *,
        grammar: AnswerGrammar | None,
        context_window: int,
        call: object | None = None,
        source: AnswerSource | None = None,
        calibration: Calibration | None = None,
        reasoning: ReasoningLimit | None = None,
        turns: OwnTurns | None = None,
    ) -> LocalCall:
        """The call that continues ``prompt``, token ids. ``call`` and ``reasoning``: as in ``GenerationRequest``.

        Raises ConfigurationError for an empty prompt and PromptTooLongError where no room is left for an answer.
        """
        from ..local.generate.request import GenerationRequest, Sampling
        from ..local.generate.stop_texts import StopTexts
        from ..local.model.devices import release_idle_threads

        if not prompt:
            raise ConfigurationError("the prompt has no tokens: pass a text that is not empty")
        room = context_window - len(prompt) - (0 if reasoning is None else len(reasoning.rules.closing))
        if room < 1:
            raise PromptTooLongError(
                f"the prompt has {len(prompt)} tokens and the model's context window is {context_window}: "
                "retrieve fewer or smaller chunks"
            )
        if reasoning is not None:  # the answer's room comes first
            spare = max(0, room - options.max_new_tokens)
            reasoning = reasoning._replace(tokens=min(reasoning.tokens, spare))
        sampling = Sampling(options.temperature, options.top_k, options.top_p, options.seed)
        request = GenerationRequest(
            tuple(prompt),
            min(options.max_new_tokens, room),
            sampling=sampling,
            grammar=grammar,
            call=call,
            texts=None if source is None else source.texts,
            alternatives=options.alternatives,
            probabilities=calibration is not None,
            reasoning=reasoning,
            adapter=model.adapter,
        )
        release_idle_threads()  # those of this thread, which may have loaded the model
        return cls(model, request, StopTexts(options.stop), source, calibration, turns)

    def until(self, deadline: float | None) -> LocalCall:
        """The call, which ends with an error at a deadline, as of ``GenerationRequest``."""
        self.request.deadline = deadline
        return self

    def complete(self) -> CompletionResponse:
        """The answer, waited for."""
        try:
            return self._completion(result_of(self.submit()))
        finally:
            self.request.cancelled = True

    async def acomplete(self) -> CompletionResponse:
        """The answer, awaited."""
        try:
            return self._completion(await aresult_of(self.submit()))
        finally:
            self.request.cancelled = True

    def stream(self) -> CompletionResponseGen:
        """The answer as it grows; the last response has what ``complete`` gives."""
        from ..local.generate.streaming import stream

        for chunk in stream(self.model.engine, self._tokenizer, self.request, self.stops):
            yield self._response(*self._read(chunk))

    async def astream(self) -> CompletionResponseAsyncGen:
        """The answer as it grows; the last response has what ``complete`` gives."""
        from ..local.generate.streaming import astream

        async for chunk in astream(self.model.engine, self._tokenizer, self.request, self.stops):
            yield self._response(*self._read(chunk))

    def submit(self) -> Future[GenerationResult]:
        """Queue the request; the future ends with its result or with the error."""
        self.stops.end(self.request, self._tokenizer)
        return self.model.engine.submit(self.request)

    def text_of(self, result: GenerationResult) -> tuple[str, GenerationResult]:
        """The text of a result up to the first stop text, and the result, whose reason is ``stop`` if it has one."""
        written = self._tokenizer.decode(result.tokens, skip_special_tokens=True)
        return self.stops.applied(written if self.turns is None else self.turns.text(written), result)

    @property
    def _tokenizer(self) -> Any:
        return self.model.tokenizer if self.turns is None else self.turns

    def _read(self, chunk: Chunk) -> Chunk:
        """A chunk of a stream, whose text is JSON where it was not."""
        if self.turns is None:
            return chunk
        return chunk._replace(text=self.turns.text(chunk.text, is_whole=chunk.result is not None))

    def reasoning_of(self, result: GenerationResult) -> str:
        """The reasoning before a result's answer; empty where there is none."""
        limit = self.request.reasoning
        return "" if limit is None else limit.rules.text(result.reasoning)

    def _completion(self, result: GenerationResult) -> CompletionResponse:
        text, result = self.text_of(result)
        return self._response(text, None, result, self.reasoning_of(result))

    def _response(
        self,
        text: str,
        delta: str | None,
        result: GenerationResult | None,
        reasoning: str = "",
        reasoning_delta: str = "",
    ) -> CompletionResponse:
        extra = reasoning_fields(reasoning, reasoning_delta)
        if result is None:
            return CompletionResponse(text=text, delta=delta, additional_kwargs=extra)
        usage = usage_of(len(self.request.prompt), len(result.tokens), len(result.reasoning))
        raw: dict[str, Any] = {"usage": usage, "finish_reason": result.finish_reason}
        if self.calibration is not None and (trust := self.trust(text, result)) is not None:
            raw[TRUST] = finished_trust(trust, text, self.source, self.calibration)
        return CompletionResponse(text=text, delta=delta, raw=raw, additional_kwargs=extra)

    def trust(self, text: str, result: GenerationResult) -> Trust | None:
        """The trust in an answer by its tokens, without probabilities yet; None where its text has no JSON."""
        try:
            texts = self.model.token_texts(result.tokens)
        except ConfigurationError:  # no grammar can be made with this tokenizer, and none was asked for
            return trust_in_tokens(text)
        *texts, end = [*texts, b""] if self.turns is None else self.turns.token_texts(result.tokens, texts)
        if len(result.probabilities) > len(texts):
            texts += [end, *[b""] * (len(result.probabilities) - len(texts) - 1)]
        elif texts:  # there is no stop token that the end belongs to
            texts[-1] += end
        pairs = zip(texts, result.probabilities, strict=True)
        return trust_in_tokens(text, [AnswerToken(text, *scores) for text, scores in pairs])


def usage_of(prompt: int, answer: int, reasoning: int) -> dict[str, Any]:
    """Counts of tokens in OpenAI's form, where those of the reasoning are a part of the completion's."""
    usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": answer + reasoning}
    return {**usage, "completion_tokens_details": {"reasoning_tokens": reasoning}} if reasoning else usage


def reasoning_fields(reasoning: str, delta: str = "") -> dict[str, Any]:
    """``additional_kwargs`` of a response: its reasoning, and under LlamaIndex's name what a chunk adds to it."""
    fields = {"reasoning_content": reasoning, "thinking_delta": delta}
    return {name: text for name, text in fields.items() if text}


def finished_trust(
    trust: Trust, text: str, source: AnswerSource | None, calibration: Calibration
) -> dict[str, Any]:
    """The trust in an answer as ``raw`` has it: with problems, probabilities, and where the values stand."""
    if source is not None:
        trust = trust.model_copy(update={"problems": source.problems(text)})
        trust = source.evidence(trust, text)
    return calibration.applied(trust).model_dump(mode="json")


def as_chat(completion: CompletionResponse) -> ChatResponse:
    """The chat response with the text of a completion."""
    note_answer(completion.text, completion.raw)
    blocks = [*thinking_blocks(completion), TextBlock(text=completion.text)]
    return ChatResponse(
        message=ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks),
        delta=completion.delta,
        raw=completion.raw,
        additional_kwargs={
            name: text for name, text in completion.additional_kwargs.items() if name == "thinking_delta"
        },
    )


def thinking_blocks(completion: CompletionResponse) -> list[ContentBlock]:
    """The reasoning of a completion as a block; none without any."""
    reasoning = completion.additional_kwargs.get("reasoning_content")
    if not reasoning:
        return []
    details = ((completion.raw or {}).get("usage") or {}).get("completion_tokens_details") or {}
    return [ThinkingBlock(content=reasoning, num_tokens=details.get("reasoning_tokens"))]


def prompt_ids(
    tokenizer: Any,
    messages: Sequence[ChatMessage],
    schema: Mapping[str, Any] | None,
    form: PromptForm,
    *,
    date: str | None = None,
    context_window: int,
) -> list[int]:
    """Token ids of the prompt, as in training: by the chat template, the schema in the system message.

    ``date``: as for ``render_prompt``. Raises ConfigurationError without messages, and as ``trained_messages``;
    PromptTooLongError for texts that cannot fit into ``context_window``, before they are tokenised.
    """
    if not messages:
        raise ConfigurationError("there are no messages to answer: pass one at least")
    tools, said = own_tools(tokenizer, schema, form)
    trained = trained_messages(messages, said, form)
    spelled = [compact_json(tool) for tool in tools]
    for tool in spelled:
        require_encodable(tool, "a tool")
    require_short([*(message["content"] for message in trained), *spelled], context_window)
    return render_prompt(tokenizer, trained, date=date, thinking=form.thinking, tools=tools)


def trained_messages(
    messages: Sequence[ChatMessage], schema: Mapping[str, Any] | None, form: PromptForm
) -> list[dict[str, str]]:
    """LlamaIndex's messages as role and content, in the form in which captured ones and their schema are trained.

    Thinking and cache points are no content; tool calls are kept. Raises ConfigurationError for other blocks than
    text, and for text that UTF-8 cannot encode.
    """
    plain = [plain_message(number, message) for number, message in enumerate(messages)]
    trained = messages_with_schema(plain, schema, form)
    for message in trained:
        require_encodable(message["content"], f"a {message['role']} message")
    return trained


def require_encodable(text: str, where: str) -> None:
    """Raise ConfigurationError for text that no tokenizer and no server takes."""
    try:
        require_utf8(text)
    except ValueError as error:
        raise ConfigurationError(f"{where} has {error}") from error


def plain_message(number: int, message: ChatMessage) -> Message:
    """A chat message as text. Raises ConfigurationError, which has the number, where it is not."""
    try:
        return message_of(message, text_only=True)
    except DatasetError as error:
        raise ConfigurationError(f"message {number}: {error}") from error
    except ValidationError as error:
        problems = "; ".join(problem["msg"] for problem in error.errors(include_url=False))
        raise ConfigurationError(f"message {number} ({message.role.value}): {problems}") from error


def schema_reserve(window: int, answer_tokens: int, wanted: int | None) -> int:
    """Tokens of a context window that query engines leave free for a schema.

    ``wanted``: what the largest schema of training takes; None: not known. At least half of what answers leave is for
    texts: a larger schema is an error of the call, not of LlamaIndex.
    """
    known = min(_SCHEMA_TOKENS, window // 4) if wanted is None else wanted
    return min(known, max(0, window - answer_tokens) // 2)


def too_long_with_schema(error: PromptTooLongError, room: int, free: int) -> PromptTooLongError:
    """The error of a prompt that is too long, with what its schema takes and what query engines leave for it."""
    return PromptTooLongError(
        f"{error}. {room} of the tokens are the schema, and LlamaIndex's query engines leave {free} free for it: set "
        f"schema_tokens={room}, or pass llm.as_structured_llm(output_cls) to the query engine. Its count of tokens is "
        "that of llama_index.core.set_global_tokenizer()"
    )
