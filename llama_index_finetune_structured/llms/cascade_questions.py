"""A structured call as a question that is put to a cascade's student and, in the same form, to its teacher."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, TextBlock
from llama_index.core.llms.llm import LLM
from llama_index.core.prompts import BasePromptTemplate
from pydantic import BaseModel

from ..answer_values import class_schema, readable_value, trained_value
from ..capture.request import read_request
from ..errors import ConfigurationError, DatasetError, StructuredAnswerError
from ..example import compact_json, json_span, loads
from ..formats.wire import message_to_wire, schema_format
from ..stated_rules import answer_problems
from ..trust.answer_trust import Trust
from ..trust.lookup import TRUST, note_answer, trust_of
from .merged_calls import fits
from .structured import request_schema, source_texts
from .synthesized_answers import change_trust

__all__ = [
    "CascadeQuestion",
    "chat_question",
    "completion_question",
    "for_teacher",
    "known_trust",
    "predict_question",
    "with_trust",
]

# Keywords of LoraLLM alone: they say how the student generates, and other LLMs refuse them.
_STUDENTS = frozenset({"answers", "grammar_schema", "max_new_tokens", "top_k", "windows"})


@dataclass(frozen=True)
class CascadeQuestion:
    """One structured call, in the form in which it was made.

    ``method``: of the LLMs, for asyncio with ``a`` before it. ``student``, ``teacher``: its arguments and keywords for
    each. ``output_cls``: the class of the answer; None: the answer is a response with a text.
    """

    method: str
    schema: Mapping[str, Any]
    student: tuple[tuple[Any, ...], Mapping[str, Any]]
    teacher: tuple[tuple[Any, ...], Mapping[str, Any]]
    output_cls: type[BaseModel] | None = None

    def put(self, llm: LLM, to: Literal["student", "teacher"], prefix: Literal["", "a"] = "") -> Any:
        """The answer of an LLM or, with the prefix ``a``, its coroutine."""
        args, keywords = self.student if to == "student" else self.teacher
        return getattr(llm, prefix + self.method)(*args, **keywords)

    def checked(self, answer: Any) -> Any:
        """An answer that fits the schema. Raises StructuredAnswerError for others."""
        if self.output_cls is not None:
            if isinstance(answer, self.output_cls):
                return answer
            raise StructuredAnswerError(
                f"expected an object of {self.output_cls.__name__}, found {type(answer).__name__}"
            )
        try:
            value = loads(json_span(_text(answer)))
        except ValueError as error:
            raise StructuredAnswerError(f"the answer holds no JSON value: {error}") from error
        if not fits(self.schema, value):
            raise StructuredAnswerError("the answer does not fit the schema of the call")
        return answer

    def written(self, answer: Any) -> str | None:
        """An answer as JSON text; None where it cannot be written."""
        if isinstance(answer, ChatResponse | CompletionResponse):
            return _text(answer)
        with contextlib.suppress(DatasetError, ValueError):
            return compact_json(trained_value(answer))
        return None

    def problems(self, answer: Any) -> tuple[str, ...]:
        """The problems of an answer that fits the schema."""
        if self.output_cls is not None:
            return answer_problems(self.schema, readable_value(answer, self.output_cls), (), answer)
        messages, written = self.student[0][0], self.written(answer)
        if written is None:
            return ()
        texts = [messages] if isinstance(messages, str) else source_texts(messages)
        return answer_problems(self.schema, loads(json_span(written)), texts)


def known_trust(answer: Any) -> Trust:
    """The trust in an answer; an empty one where nothing is known."""
    try:
        return trust_of(answer)
    except ConfigurationError:
        return Trust()


def with_trust(answer: Any, trust: Trust) -> Any:
    """The answer, of which ``trust_of`` says this trust: an object itself, or a copy of a response."""
    if isinstance(answer, ChatResponse | CompletionResponse):
        raw = answer.raw.model_dump() if isinstance(answer.raw, BaseModel) else answer.raw
        kept = raw if isinstance(raw, Mapping) else {}
        marked = {**kept, TRUST: trust.model_dump(mode="json")}
        note_answer(_text(answer), marked)
        return answer.model_copy(update={"raw": marked})
    change_trust(answer, trust)
    return answer


def _text(response: ChatResponse | CompletionResponse) -> str:
    if isinstance(response, CompletionResponse):
        return response.text
    return response.message.content or ""


def predict_question(
    output_cls: type[BaseModel],
    prompt: BasePromptTemplate,
    llm_kwargs: Mapping[str, Any] | None,
    prompt_args: Mapping[str, Any],
) -> CascadeQuestion:
    """The question of ``structured_predict``."""
    args = (output_cls, prompt)
    keywords = None if llm_kwargs is None else dict(llm_kwargs)
    shared = None if llm_kwargs is None else for_teacher(llm_kwargs)
    return CascadeQuestion(
        "structured_predict",
        class_schema(output_cls),
        (args, {"llm_kwargs": keywords, **prompt_args}),
        (args, {"llm_kwargs": shared, **prompt_args}),
        output_cls,
    )


def chat_question(messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]) -> CascadeQuestion | None:
    """The question of a chat; None where it asks for no schema.

    The schema is that of ``response_format`` or the one that LlamaIndex's programs append to the prompt. The student
    gets it by ``response_format`` in both cases, as in training.
    """
    schema = request_schema(kwargs.get("response_format"))
    if schema is not None:
        return CascadeQuestion("chat", schema, ((messages,), kwargs), ((messages,), for_teacher(kwargs)))
    request = read_request([message_to_wire(message) for message in messages], {}, None)
    if request.schema is None or request.schema_text is None:
        return None
    form = schema_format(request.schema_name or "answer", request.schema)
    bare = [_without(message, request.schema_text) for message in messages]
    return CascadeQuestion(
        "chat",
        request.schema,
        ((bare,), {**kwargs, "response_format": form}),
        ((messages,), for_teacher(kwargs)),
    )


def completion_question(prompt: str, formatted: bool, kwargs: Mapping[str, Any]) -> CascadeQuestion | None:
    """The question of a completion; None where it asks for no schema."""
    schema = request_schema(kwargs.get("response_format"))
    if schema is None:
        return None
    args = (prompt, formatted)
    return CascadeQuestion("complete", schema, (args, kwargs), (args, for_teacher(kwargs)))


def for_teacher(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a call that other LLMs than ``LoraLLM`` know."""
    return {name: value for name, value in keywords.items() if name not in _STUDENTS}


def _without(message: ChatMessage, text: str) -> ChatMessage:
    blocks = [
        TextBlock(text=block.text.replace(text, "")) if isinstance(block, TextBlock) else block
        for block in message.blocks
    ]
    return message.model_copy(update={"blocks": blocks})
