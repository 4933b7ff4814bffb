"""Calls of a chat completion: one for each choice, answered whole or in pieces, in OpenAI's form."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from llama_index.core.base.llms.types import CompletionResponse

from ..example import compact_json, json_span, loads
from ..formats.wire import schema_format
from ..json_schema import find_error
from ..llms.local_calls import LocalCall
from ..llms.lora import LoraLLM
from ..llms.merged_calls import MergedCall
from ..llms.structured import SECOND_ATTEMPT, source_texts, without_last_repetition
from ..llms.tool_calls import ToolCalls, chat_form
from ..local.schema.bounds import schema_key
from ..trust.answer_trust import trust_in_rest
from ..trust.lookup import TRUST, trust_in_raw
from ..written_values.answers import read_answer
from .answering import ChoicePart, end_of
from .chat_request import ChatCompletionRequest
from .errors import invalid
from .strict_schemas import all_required, trained_schema
from .token_logprobs import TokenLogprobs
from .turn_stream import TurnPiece, TurnReader

__all__ = ["ChatCall", "chat_calls"]


def chat_calls(llm: LoraLLM, request: ChatCompletionRequest) -> list[ChatCall]:
    """The calls of a request, ready to be answered. Renders prompts and compiles grammars: not on an event loop.

    Raises ApiError for fields that the model does not have, and as calls of ``LoraLLM``.
    """
    request.require_schemas()
    if not request.trust:  # else it is computed for nothing
        llm = llm.model_copy(update={"confidence": False})
    schema, keywords = _schema_keywords(llm, request)
    keywords |= _tool_keywords(llm, request) | {
        "max_new_tokens": request.answer_tokens,
        "thinking_tokens": _thinking_tokens(llm, request),
    }
    messages = request.chat_messages
    distinct = schema is not None and schema_key(schema) in llm.bounds.distinct

    def call_of(keywords: Mapping[str, Any], second: Callable[[], ChatCall] | None = None) -> ChatCall:
        form = chat_form(messages, keywords, llm.trained_schemas)
        call = llm._chat_call(form.messages, form.keywords)
        reader = TurnReader(form.tool) if isinstance(form, ToolCalls) else None
        logprobs = None
        if request.logprobs and reader is None and isinstance(call, LocalCall):
            logprobs = TokenLogprobs(call, request.top_logprobs or 0)
        answer = None if schema is None else AnswerRules(schema, distinct, source_texts(messages), second)
        return ChatCall(call, reader, logprobs, answer, bool(request.trust))

    def call_of_choice(choice: int) -> ChatCall:
        asked = {**keywords, **request.sampling(choice)}
        again = {**asked, **SECOND_ATTEMPT, "seed": choice}
        return call_of(asked, lambda: call_of(again))

    return [call_of_choice(choice) for choice in range(request.choices)]


def _schema_keywords(
    llm: LoraLLM, request: ChatCompletionRequest
) -> tuple[Mapping[str, Any] | None, dict[str, Any]]:
    """The schema of the answer, None where it is free text, and the keywords that ask for it."""
    if request.answer_schema is None:
        return None, {}
    name, asked = request.answer_schema
    schema = trained_schema(asked, llm.trained_schemas)
    keywords = {"response_format": schema_format(name, schema)}
    return schema, keywords if schema is asked else {**keywords, "grammar_schema": all_required(schema)}


def _tool_keywords(llm: LoraLLM, request: ChatCompletionRequest) -> dict[str, Any]:
    """The keywords that concern tools; the arguments of an only tool may be the answer that was trained."""
    keywords = request.tool_keywords()
    tools = keywords.get("tools", ())
    if len(tools) == 1 and (parameters := tools[0]["function"].get("parameters")):
        tools[0]["function"]["parameters"] = trained_schema(parameters, llm.trained_schemas)
    return keywords


def _thinking_tokens(llm: LoraLLM, request: ChatCompletionRequest) -> int | None:
    """The limit of the reasoning that the request asks for; None: the model's own."""
    if request.reasoning_effort in (None, "none"):
        return None if request.reasoning_effort is None else 0
    if not llm._form(None).thinking:
        message = "reasoning_effort: this model writes no reasoning: leave it out, or send 'none'"
        raise invalid(message, "reasoning_effort")
    return None


class AnswerRules(NamedTuple):
    """What is done with a whole answer to a schema.

    ``distinct``: whether its lists have no item twice. ``texts``: those that it is from. ``second``: makes the call
    that is asked where the schema refuses the answer of the first one; None: this is the second. Only the schema is
    judged: validators in Python are the client's, and so is what it does about them.
    """

    schema: Mapping[str, Any]
    distinct: bool
    texts: Sequence[str | None]
    second: Callable[[], ChatCall] | None

    def refuse(self, completion: CompletionResponse) -> bool:
        """Whether the schema refuses an answer that the grammar let through. One that was cut, or that the schema
        cannot be applied to, would be no better the second time."""
        try:
            read = read_answer(self.schema, loads(json_span(completion.text)), self.texts)
            return bool(read.unreadable) or find_error(self.schema, read.value) is not None
        except ValueError:
            return False


@dataclass(frozen=True)
class ChatCall:
    """The call of one choice; it may be answered once.

    ``reader``: of a reply with tools. ``answer``: of an answer to a schema; None: of any other. ``trust``: whether the
    choice says how sure it is.
    """

    call: LocalCall | MergedCall
    reader: TurnReader | None
    logprobs: TokenLogprobs | None
    answer: AnswerRules | None
    trust: bool

    async def choice(self) -> ChoicePart:
        """The whole choice. An answer that its schema refuses is asked for a second time."""
        completion = await self.call.acomplete()
        rules = self.answer
        if rules is None or rules.second is None or not rules.refuse(completion):
            return self._choice(completion)
        second = await asyncio.to_thread(rules.second)
        other = await second.call.acomplete()
        chosen = self._choice(completion) if rules.refuse(other) else second._choice(other)
        return replace(chosen, usage=_both(end_of(completion)["usage"], end_of(other)["usage"]))

    def _choice(self, completion: CompletionResponse) -> ChoicePart:
        message: dict[str, Any] = {"role": "assistant", "content": completion.text, "refusal": None}
        if reasoning := completion.additional_kwargs.get("reasoning_content"):
            message["reasoning_content"] = reasoning
        if self.reader is not None:
            message |= _read_turn(self.reader, completion.text)
        elif self.answer is not None and self.answer.distinct:
            completion = _distinct(completion, self.answer.schema)
            message["content"] = completion.text
        fields = {"message": message, "logprobs": self._logprobs(completion.text, is_whole=True)}
        return ChoicePart({**fields, **self._end(completion)}, end_of(completion)["usage"])

    async def parts(self) -> AsyncGenerator[ChoicePart, None]:
        """The choice as it grows."""
        yield ChoicePart(
            self._chunk({"role": "assistant", "content": None if self.reader else "", "refusal": None})
        )
        ids = list[str]()
        completion = CompletionResponse(text="")
        async with aclosing(self.call.astream()) as completions:
            async for completion in completions:
                if reasoning := completion.additional_kwargs.get("thinking_delta"):
                    yield ChoicePart(self._chunk({"reasoning_content": reasoning}))
                for delta in self._deltas(completion.delta or "", ids):
                    yield ChoicePart(self._chunk(delta, completion.text))
        if self.reader is not None and not self.reader.is_turn and completion.text:
            yield ChoicePart(self._chunk({"content": completion.text}))
        last = self._chunk({}, completion.text, is_whole=True)
        yield ChoicePart({**last, **self._end(completion)}, end_of(completion)["usage"])

    def _deltas(self, text: str, ids: list[str]) -> list[dict[str, Any]]:
        if self.reader is None:
            return [{"content": text}] if text else []
        return [_delta(piece, ids) for piece in self.reader.read(text)]

    def _chunk(self, delta: dict[str, Any], text: str = "", *, is_whole: bool = False) -> dict[str, Any]:
        return {"delta": delta, "logprobs": self._logprobs(text, is_whole=is_whole), "finish_reason": None}

    def _logprobs(self, text: str, *, is_whole: bool) -> dict[str, Any] | None:
        if self.logprobs is None:
            return None
        return {"content": self.logprobs.next(text, is_whole=is_whole), "refusal": None}

    def _end(self, completion: CompletionResponse) -> dict[str, Any]:
        reason = end_of(completion)["finish_reason"]
        if self.reader is not None and self.reader.calls and reason == "stop":
            reason = "tool_calls"
        trust = {"trust": end_of(completion).get(TRUST)} if self.trust else {}
        return {"finish_reason": reason, **trust}


def _both(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The counts of tokens of two attempts at one prompt."""
    details = [usage.get("completion_tokens_details") or {} for usage in (first, second)]
    reasoning = sum(detail.get("reasoning_tokens", 0) for detail in details)
    return {
        **first,
        "completion_tokens": first["completion_tokens"] + second["completion_tokens"],
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def _delta(piece: TurnPiece, ids: list[str]) -> dict[str, Any]:
    """What a stream's chunk has of a piece. ``ids``: of the calls so far."""
    if piece.call is None:
        return {"content": piece.text}
    if piece.name is None:
        return {"tool_calls": [{"index": piece.call, "function": {"arguments": piece.arguments}}]}
    ids.append(f"call_{uuid.uuid4().hex}")
    function = {"name": piece.name, "arguments": piece.arguments}
    return {"tool_calls": [{"index": piece.call, "id": ids[-1], "type": "function", "function": function}]}


def _read_turn(reader: TurnReader, text: str) -> dict[str, Any]:
    """Content and tool calls of an answer; its text where it is no turn."""
    said, calls = "", list[dict[str, Any]]()
    for piece in reader.read(text):
        if piece.call is None:
            said += piece.text
        elif piece.name is not None:
            function = {"name": piece.name, "arguments": piece.arguments}
            calls.append({"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": function})
        else:
            calls[piece.call]["function"]["arguments"] += piece.arguments
    if calls:
        return {"content": said or None, "tool_calls": calls}
    return {"content": said or ("" if reader.is_turn else text)}


def _distinct(completion: CompletionResponse, schema: Mapping[str, Any]) -> CompletionResponse:
    """An answer without the item that the grammar ended a list at, because it stood there before."""
    with suppress(ValueError):  # an answer that was cut
        value = loads(json_span(completion.text))
        distinct = without_last_repetition(value)
        if distinct != value and find_error(schema, distinct) is None:
            trust = trust_in_raw(completion.raw)
            left = None if trust is None else trust_in_rest(trust, distinct).model_dump(mode="json")
            raw = {**end_of(completion), TRUST: left}
            return completion.model_copy(update={"text": compact_json(distinct), "raw": raw})
    return completion
