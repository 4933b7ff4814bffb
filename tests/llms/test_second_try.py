"""What the grammar cannot express is validated, attempted once more, and then an error with field and reason."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.llms import ChatMessage, ChatResponse
from pydantic import BaseModel, Field, RootModel, ValidationInfo, field_validator, model_validator

from llama_index_finetune_structured import LoraLLM
from llama_index_finetune_structured.errors import StructuredAnswerError
from llama_index_finetune_structured.llms.structured import parse_answer
from llama_index_finetune_structured.local.schema.bounds import AnswerBounds
from tests.llms.structured_events import StructuredEvents

PROMPT = PromptTemplate("Describe {thing}.")
ASK: list[Callable[[LoraLLM, type[BaseModel]], Awaitable[Any]]] = []


def _way(ask: Any) -> Any:
    ASK.append(ask)
    return ask


@_way
async def predict(llm: LoraLLM, shape: type[BaseModel]) -> Any:
    return await asyncio.to_thread(llm.structured_predict, shape, PROMPT, thing="a span")


@_way
async def apredict(llm: LoraLLM, shape: type[BaseModel]) -> Any:
    return await llm.astructured_predict(shape, PROMPT, thing="a span")


@_way
async def stream(llm: LoraLLM, shape: type[BaseModel]) -> Any:
    return (await asyncio.to_thread(lambda: [*llm.stream_structured_predict(shape, PROMPT, thing="a span")]))[
        -1
    ]


@_way
async def astream(llm: LoraLLM, shape: type[BaseModel]) -> Any:
    parts = await llm.astream_structured_predict(shape, PROMPT, thing="a span")
    return [part async for part in parts][-1]


def _refusing(texts: set[str]) -> type[BaseModel]:
    """A shape whose validator refuses answers by a rule that its schema cannot express."""

    class Span(BaseModel):
        letters: str = Field(pattern="^[a-f]{4,8}$")
        low: int = Field(ge=0, le=9)

        @field_validator("letters")
        @classmethod
        def _is_allowed(cls, value: str, _info: ValidationInfo) -> str:
            if not texts or value in texts:
                raise ValueError("these letters are taken")
            return value

    return Span


@pytest.fixture(scope="module")
def llm(tiny_llama: Path) -> LoraLLM:
    return LoraLLM(base_model=str(tiny_llama), max_new_tokens=200)


@pytest.mark.parametrize("ask", ASK, ids=lambda ask: ask.__name__)
def test_an_answer_that_a_validator_refuses_gets_one_more_attempt(
    llm: LoraLLM, structured_events: StructuredEvents, ask: Any
) -> None:
    first = asyncio.run(ask(llm, _refusing({"none"})))
    again = asyncio.run(ask(llm, _refusing({first.letters})))
    assert again.letters != first.letters
    assert [retries for retries, _ in structured_events.events] == [0, 1]
    assert asyncio.run(ask(llm, _refusing({first.letters}))).letters == again.letters


@pytest.mark.parametrize("ask", ASK, ids=lambda ask: ask.__name__)
def test_a_second_answer_that_does_not_fit_is_an_error_that_names_field_and_reason(
    llm: LoraLLM, structured_events: StructuredEvents, ask: Any
) -> None:
    with pytest.raises(
        StructuredAnswerError, match=r"Span: letters: .*letters are taken, found '[a-f]+'.*twice"
    ):
        asyncio.run(ask(llm, _refusing(set())))
    assert [retries for retries, _ in structured_events.events] == [1]


class Ordered(BaseModel):
    low: int = Field(ge=0, le=99)
    high: int = Field(ge=0, le=99)

    @model_validator(mode="after")
    def _is_ordered(self) -> Ordered:
        if self.low >= self.high:
            raise ValueError("low must be below high")
        return self


def test_an_error_of_the_whole_object_is_reported_as_such(tiny_llama: Path) -> None:
    llm = LoraLLM(base_model=str(tiny_llama), max_new_tokens=100, temperature=1.5)
    answers: list[Any] = []
    errors: list[str] = []
    for n in range(20):
        try:
            answers.append(llm.structured_predict(Ordered, PROMPT, thing=str(n)))
        except StructuredAnswerError as error:
            errors.append(str(error))
    assert answers
    assert all(answer.low < answer.high for answer in answers)
    assert all("the object: Value error, low must be below high" in error for error in errors)


def test_the_second_try_sends_the_same_prompt(llm: LoraLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[Any] = []
    submit = llm._loaded.engine.submit
    monkeypatch.setattr(
        llm._loaded.engine, "submit", lambda request: prompts.append(request.prompt) or submit(request)
    )
    with pytest.raises(StructuredAnswerError):
        llm.structured_predict(_refusing(set()), PROMPT, thing="a span")
    assert len(prompts) == 2
    assert prompts[0] == prompts[1]


def test_without_the_grammar_there_is_one_attempt(
    tiny_llama: Path, structured_events: StructuredEvents
) -> None:
    free = LoraLLM(base_model=str(tiny_llama), max_new_tokens=20, constrained=False)
    with pytest.raises(StructuredAnswerError) as refused:
        free.structured_predict(Ordered, PROMPT, thing="x")
    assert "twice" not in str(refused.value)
    assert structured_events.events == [(0, [])]


def test_an_answer_that_reached_a_bound_is_reported_even_where_it_is_refused(
    tiny_llama: Path, structured_events: StructuredEvents
) -> None:
    class Never(BaseModel):
        title: str

        @model_validator(mode="after")
        def _no(self) -> Never:
            raise ValueError("never")

    llm = LoraLLM(base_model=str(tiny_llama), bounds=AnswerBounds(default_characters=1), temperature=1.5)
    for n in range(5):
        with pytest.raises(StructuredAnswerError, match="never"):
            llm.structured_predict(Never, PROMPT, thing=str(n))
    assert (1, ["#/properties/title"]) in structured_events.events


def test_an_error_of_the_model_is_not_retried(llm: LoraLLM) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    hook = llm._loaded.engine.model.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="out of memory"):
            llm.structured_predict(Ordered, PROMPT, thing="x")
    finally:
        hook.remove()
    response = llm.chat([ChatMessage(role="user", content="Hello")], max_new_tokens=3)
    assert isinstance(response, ChatResponse)


def test_an_answer_that_is_a_list_is_read_whole() -> None:
    class Spans(RootModel[list[dict[str, int]]]):
        pass

    for text in ('[{"a": 1}, {"a": 2}]', ' [{"a": 1}, {"a": 2}]\n'):
        assert parse_answer(Spans, text) == Spans([{"a": 1}, {"a": 2}])
