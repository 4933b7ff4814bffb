"""The answers of a cascade, in all ways of LlamaIndex's ``LLM``: the student's where it is sure, else the teacher's."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
)
from llama_index.core.instrumentation.events.llm import (
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictStartEvent,
)
from llama_index.core.llms.llm import LLM
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.tools import BaseTool
from llama_index_instrumentation import get_dispatcher
from pydantic import BaseModel, Field, PrivateAttr

from ..capture.labels import labelled
from ..errors import PromptTooLongError, StructuredAnswerError
from ..printable import package_logger
from ..trust.answer_trust import Trust
from ..trust.calibration import Calibration
from .cascade_calls import CascadeCalls
from .cascade_counts import CascadeCounts, Outcome
from .cascade_questions import (
    CascadeQuestion,
    chat_question,
    completion_question,
    known_trust,
    predict_question,
    with_trust,
)
from .cascade_rule import SchemaRule, SchemaRules
from .cascade_timeout import awithin, within
from .cascade_turns import turn_question
from .structured import with_problems
from .tool_calls import ToolCallingLLM

__all__ = ["CascadeAnswers"]

dispatcher = get_dispatcher(__name__)
_logger = package_logger(__name__)


@dataclass(frozen=True)
class _Reply:
    """What the student answered. ``error``: why there is no answer, or one that does not fit."""

    answer: Any = None
    trust: Trust = field(default_factory=Trust)
    error: Exception | None = None
    is_sure: bool = False


class CascadeAnswers(ToolCallingLLM):
    """What ``Cascade`` is to LlamaIndex.

    Attributes:
        student: The LLM that is asked first.
        teacher: The LLM that is asked where the student is not sure.
        on_teacher_error: Whether the answer is the student's where the teacher fails, or the error is raised.
        teacher_timeout: Seconds that the teacher may take.
    """

    student: LLM = Field(exclude=True, repr=False, description="The LLM that is asked first.")
    teacher: LLM = Field(exclude=True, repr=False, description="The LLM that is asked for the other answers.")
    on_teacher_error: Literal["student", "raise"] = Field(
        default="student", description="The student's answer where the teacher fails, or the error."
    )
    teacher_timeout: float | None = Field(
        default=None, gt=0, description="Seconds that the teacher may take."
    )

    _rules: SchemaRules = PrivateAttr()
    _calls: CascadeCalls = PrivateAttr()
    _counts: CascadeCounts = PrivateAttr()
    _teacher_fails: bool = PrivateAttr(default=False)

    @property
    def _calibrations(self) -> Mapping[str, Calibration]:
        """The student's, as they are now: another version of it may serve than at the last call."""
        student: Any = self.student
        found: Mapping[str, Calibration] = student.calibrations
        return found

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The answer to messages."""
        question = self._chat_question(messages, kwargs)
        if question is not None:
            response: ChatResponse = self._answer(question)
            return response
        with self._asking_for_text():
            return self.teacher.chat(messages, **kwargs)

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The answer to messages."""
        question = self._chat_question(messages, kwargs)
        if question is not None:
            response: ChatResponse = await self._aanswer(question)
            return response
        with self._asking_for_text():
            return await self.teacher.achat(messages, **kwargs)

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """The answer to messages, as a stream; one that is asked for by a schema comes whole, since it may change."""
        question = self._chat_question(messages, kwargs)
        if question is not None:
            return (_whole(self._answer(each)) for each in (question,))
        with self._asking_for_text():
            return self.teacher.stream_chat(messages, **kwargs)

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """The answer to messages, as a stream; one that is asked for by a schema comes whole, since it may change."""
        question = self._chat_question(messages, kwargs)
        if question is not None:
            return (_whole(await self._aanswer(each)) for each in (question,))
        with self._asking_for_text():
            return await self.teacher.astream_chat(messages, **kwargs)

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The answer to a prompt."""
        question = completion_question(prompt, formatted, kwargs)
        if question is not None:
            response: CompletionResponse = self._answer(question)
            return response
        with self._asking_for_text():
            return self.teacher.complete(prompt, formatted, **kwargs)

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The answer to a prompt."""
        question = completion_question(prompt, formatted, kwargs)
        if question is not None:
            response: CompletionResponse = await self._aanswer(question)
            return response
        with self._asking_for_text():
            return await self.teacher.acomplete(prompt, formatted, **kwargs)

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """The answer to a prompt, as a stream; one that is asked for by a schema comes whole, since it may change."""
        question = completion_question(prompt, formatted, kwargs)
        if question is not None:
            return (_whole(self._answer(each)) for each in (question,))
        with self._asking_for_text():
            return self.teacher.stream_complete(prompt, formatted, **kwargs)

    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """The answer to a prompt, as a stream; one that is asked for by a schema comes whole, since it may change."""
        question = completion_question(prompt, formatted, kwargs)
        if question is not None:
            return (_whole(await self._aanswer(each)) for each in (question,))
        with self._asking_for_text():
            return await self.teacher.astream_complete(prompt, formatted, **kwargs)

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
            llm_kwargs: Keywords of the call; those of ``LoraLLM`` alone are not passed to the teacher.
            **prompt_args: Variables of the template.

        Raises:
            ConfigurationError: The student's answers to the class are not calibrated and must be.
        """
        _emit_start(output_cls, prompt, prompt_args)
        result: BaseModel = self._answer(predict_question(output_cls, prompt, llm_kwargs, prompt_args))
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
        """``structured_predict()`` for asyncio.

        Args:
            output_cls: Class of the answer.
            prompt: The prompt template.
            llm_kwargs: Keywords of the call; those of ``LoraLLM`` alone are not passed to the teacher.
            **prompt_args: Variables of the template.

        Raises:
            ConfigurationError: As ``structured_predict()``.
        """
        _emit_start(output_cls, prompt, prompt_args)
        question = predict_question(output_cls, prompt, llm_kwargs, prompt_args)
        result: BaseModel = await self._aanswer(question)
        dispatcher.event(LLMStructuredPredictEndEvent(output=result))
        return result

    def _structured_stream_call(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        """The student's partial objects, then the answer: the student's last object is held back until it is sure."""
        question = predict_question(output_cls, prompt, llm_kwargs, prompt_args)
        rule = self._rules.of(self._calibrations, question.schema)
        args, keywords = question.student
        last: Any = None
        try:
            with self._calls.asking("student"):
                stream: Any = self.student.stream_structured_predict(*args, **keywords)
            with closing(stream):
                for partial in stream:
                    if last is not None:
                        yield last
                    last = partial
            reply = self._judged(question, rule, last)
        except (StructuredAnswerError, PromptTooLongError) as error:
            reply = _Reply(error=error)
        yield self._settled(question, rule, reply)

    async def _structured_astream_call(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        question = predict_question(output_cls, prompt, llm_kwargs, prompt_args)
        rule = self._rules.of(self._calibrations, question.schema)

        async def objects() -> AsyncGenerator[Any, None]:
            args, keywords = question.student
            last: Any = None
            try:
                with self._calls.asking("student"):
                    stream: Any = await self.student.astream_structured_predict(*args, **keywords)
                async with aclosing(stream):
                    async for partial in stream:
                        if last is not None:
                            yield last
                        last = partial
                reply = self._judged(question, rule, last)
            except (StructuredAnswerError, PromptTooLongError) as error:
                reply = _Reply(error=error)
            yield await self._asettled(question, rule, reply)

        return objects()

    def _prepare_chat_with_tools(
        self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """The keywords of ``chat``, with LlamaIndex's tools: the teacher's class has its own form for them."""
        return {**super()._prepare_chat_with_tools(tools, *args, **kwargs), "tools": list(tools)}

    def _chat_question(
        self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]
    ) -> CascadeQuestion | None:
        if kwargs.get("tools"):
            return turn_question(messages, kwargs, getattr(self.student, "trained_schemas", ()))
        return chat_question(messages, kwargs)

    @contextmanager
    def _asking_for_text(self) -> Iterator[None]:
        """A call without a schema goes to the teacher: nothing tells how sure a text of the student is."""
        self._counts.text()
        with self._calls.asking("text"):
            yield

    def _answer(self, question: CascadeQuestion) -> Any:
        rule = self._rules.of(self._calibrations, question.schema)
        try:
            with self._calls.asking("student"):
                reply = self._judged(question, rule, question.put(self.student, "student"))
        except (StructuredAnswerError, PromptTooLongError) as error:
            reply = _Reply(error=error)
        return self._settled(question, rule, reply)

    async def _aanswer(self, question: CascadeQuestion) -> Any:
        rule = self._rules.of(self._calibrations, question.schema)
        try:
            with self._calls.asking("student"):
                reply = self._judged(question, rule, await question.put(self.student, "student", "a"))
        except (StructuredAnswerError, PromptTooLongError) as error:
            reply = _Reply(error=error)
        return await self._asettled(question, rule, reply)

    def _judged(self, question: CascadeQuestion, rule: SchemaRule, answer: Any) -> _Reply:
        trust = known_trust(answer)
        try:
            question.checked(answer)
        except StructuredAnswerError as error:
            return _Reply(answer, trust, error)
        problems = [*trust.problems, *question.problems(answer)]
        trust = with_problems(trust, problems, self._calibrations.get(rule.key))
        is_sure = rule.is_sure(trust.probability) and not trust.problems
        return _Reply(answer, trust, is_sure=is_sure)

    def _settled(self, question: CascadeQuestion, rule: SchemaRule, reply: _Reply) -> Any:
        """The answer of a question that the student has answered."""
        if reply.is_sure:
            return self._by_student(rule, reply, "student")
        try:
            with self._handing_over(question, reply):
                answer = question.checked(within(self.teacher_timeout, question, self.teacher))
        except Exception as error:
            return self._without_teacher(rule, reply, error)
        return self._by_teacher(rule, question, answer)

    async def _asettled(self, question: CascadeQuestion, rule: SchemaRule, reply: _Reply) -> Any:
        if reply.is_sure:
            return self._by_student(rule, reply, "student")
        try:
            with self._handing_over(question, reply):
                answer = question.checked(await awithin(self.teacher_timeout, question, self.teacher))
        except Exception as error:
            return self._without_teacher(rule, reply, error)
        return self._by_teacher(rule, question, answer)

    @contextmanager
    def _handing_over(self, question: CascadeQuestion, reply: _Reply) -> Iterator[None]:
        """The teacher's answer is captured with the student's beside it."""
        facts: dict[str, Any] = {
            "student": self.student.metadata.model_name,
            "student_answer": None if reply.answer is None else question.written(reply.answer),
            "student_probability": reply.trust.probability,
            "student_problems": "; ".join(reply.trust.problems) or None,
            "student_error": None if reply.error is None else type(reply.error).__name__,
        }
        known = {name: fact for name, fact in facts.items() if fact is not None}
        with labelled(**known), self._calls.asking("teacher"):
            yield

    def _by_student(self, rule: SchemaRule, reply: _Reply, outcome: Outcome) -> Any:
        self._counts.add(outcome, rule.key, rule.expected)
        name = self.student.metadata.model_name
        return with_trust(
            reply.answer,
            reply.trust.model_copy(update={"answered_by": name, "sure": outcome == "student"}),
        )

    def _by_teacher(self, rule: SchemaRule, question: CascadeQuestion, answer: Any) -> Any:
        self._teacher_fails = False
        self._counts.add("teacher", rule.key, rule.expected)
        own = known_trust(answer)  # of a teacher that is a LoraLLM or a cascade
        own = with_problems(own, [*own.problems, *question.problems(answer)], None)
        name = own.answered_by or self.teacher.metadata.model_name
        sure = (True if own.sure is None else own.sure) and not own.problems
        return with_trust(answer, own.model_copy(update={"answered_by": name, "sure": sure}))

    def _without_teacher(self, rule: SchemaRule, reply: _Reply, error: Exception) -> Any:
        """The student's answer; raises the teacher's error where there is none, or it is wanted."""
        if not self._teacher_fails:
            self._teacher_fails = True
            _logger.warning(
                "the teacher did not answer (%s); on_teacher_error is %r. Further failures are only counted, until it "
                "answers again",
                type(error).__name__,  # its text may hold what the messages hold
                self.on_teacher_error,
            )
        if self.on_teacher_error == "student" and reply.answer is not None:
            return self._by_student(rule, reply, "unsure")
        self._counts.add("unanswered", rule.key, rule.expected)
        raise error from reply.error


def _whole(answer: Any) -> Any:
    """A response as the only chunk of a stream."""
    text = answer.text if isinstance(answer, CompletionResponse) else answer.message.content
    return answer.model_copy(update={"delta": text})


def _emit_start(
    output_cls: type[BaseModel], prompt: BasePromptTemplate, prompt_args: Mapping[str, Any]
) -> None:
    dispatcher.event(
        LLMStructuredPredictStartEvent(
            output_cls=output_cls, template=prompt, template_args=dict(prompt_args)
        )
    )
