"""What the grammar cannot express is validated, attempted once more, and then an error with field and reason."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.llms import ChatMessage, ChatResponse
from pydantic import (
    BaseModel,
    Field,
    RootModel,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from llama_index_finetune_structured import LoraLLM
from llama_index_finetune_structured.errors import ConfigurationError, StructuredAnswerError
from llama_index_finetune_structured.llms.structured import StructuredCall, parse_answer
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


Big = create_model("Big", **{f"field_{number}": (int, ...) for number in range(60)})  # type: ignore[call-overload]


@pytest.mark.parametrize("ask", ASK, ids=lambda ask: ask.__name__)
def test_a_limit_too_small_for_any_answer_is_refused_before_the_model_runs(
    llm: LoraLLM, monkeypatch: pytest.MonkeyPatch, ask: Any
) -> None:
    submitted: list[Any] = []
    monkeypatch.setattr(llm._loaded.engine, "submit", submitted.append)
    with pytest.raises(ConfigurationError, match=r"smallest answer .* about 771 tokens and the limit is 200"):
        asyncio.run(ask(llm, Big))
    assert submitted == []


def test_the_room_that_the_context_leaves_counts_as_the_limit(tiny_llama: Path) -> None:
    llm = LoraLLM(base_model=str(tiny_llama), max_new_tokens=2000)
    assert isinstance(llm.structured_predict(Big, PROMPT, thing="x"), Big)
    room = 8192 + 300 - len(llm.prompt_token_ids([ChatMessage("x" * 300)], Big))
    with pytest.raises(ConfigurationError, match="about 771 tokens and the limit is 500"):
        llm.structured_predict(Big, PromptTemplate("{thing}"), thing="x" * (room - 500))


def test_other_calls_are_answered_while_one_is_refused(llm: LoraLLM) -> None:
    async def all_of_them() -> list[Any]:
        calls = [llm.astructured_predict(shape, PROMPT, thing="x") for shape in (Ordered, Big, Ordered)]
        return await asyncio.gather(*calls, return_exceptions=True)

    first, refused, last = asyncio.run(all_of_them())
    assert isinstance(refused, ConfigurationError)
    assert type(first) is type(last)
    assert not isinstance(first, ConfigurationError)


class Text(RootModel[str]): ...


class Count(RootModel[int]): ...


class Perhaps(RootModel[bool | None]): ...


class Colour(RootModel[Literal["red", "blue"]]): ...


class Day(BaseModel):
    day: str = Field(pattern=r"\d{4}-\d{2}-\d{2}")


@pytest.mark.parametrize("shape", [Text, Count, Perhaps, Colour, Day])
def test_an_answer_of_any_json_type_is_given_at_once(
    llm: LoraLLM, structured_events: StructuredEvents, shape: type[BaseModel]
) -> None:
    assert isinstance(llm.structured_predict(shape, PROMPT, thing="x"), shape)
    assert [retries for retries, _ in structured_events.events] == [0]


def test_an_answer_that_is_the_text_of_a_control_token_ends_only_at_its_end(llm: LoraLLM) -> None:
    class Mark(BaseModel):
        mark: Literal["<|im_end|>", "<|im_start|>user"]
        note: Literal["<|im_end|>"]

    for attempt in range(2):  # the second time with drafts of the first answer
        answer: Any = llm.structured_predict(Mark, PROMPT, thing=str(attempt))
        assert answer.mark in ("<|im_end|>", "<|im_start|>user")
        assert answer.note == "<|im_end|>"


def test_a_root_model_takes_any_json_and_an_object_no_prose() -> None:
    assert parse_answer(Text, ' "red {}"\n') == Text("red {}")
    assert parse_answer(Perhaps, "null") == Perhaps(None)
    assert parse_answer(Count, "12") == Count(12)
    with pytest.raises(StructuredAnswerError, match=r"Count: .*found 'red'"):
        parse_answer(Count, '"red"')
    with pytest.raises(StructuredAnswerError, match="no JSON value: 'It is red'"):
        parse_answer(Text, "It is red")
    with pytest.raises(StructuredAnswerError, match="Input should be an object, found 'red'"):
        parse_answer(Day, '"red"')


def test_an_answer_that_the_limit_cut_is_told_as_such() -> None:
    cut = ChatResponse(
        message=ChatMessage(role="assistant", content='{"day": "2026-'),
        raw={"finish_reason": "length", "usage": {"completion_tokens": 7}},
    )
    call = StructuredCall(Day, None, None)
    call.record(cut)
    with pytest.raises(StructuredAnswerError, match="cut at the limit of 7 tokens, raise max_new_tokens"):
        call.result()


def test_the_cut_of_an_answer_without_the_grammar_is_told(tiny_llama: Path) -> None:
    free = LoraLLM(base_model=str(tiny_llama), max_new_tokens=5, constrained=False)
    with pytest.raises(StructuredAnswerError, match="cut at the limit of 5 tokens"):
        free.structured_predict(Day, PROMPT, thing="x")


def test_a_schema_without_a_grammar_is_refused_unless_the_call_goes_without(tiny_llama: Path) -> None:
    schema = {"type": "object", "properties": {"s": {"type": "string", "pattern": "("}}, "required": ["s"]}
    asked: dict[str, Any] = {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
    with pytest.raises(ConfigurationError, match="constrained=False"):
        LoraLLM(base_model=str(tiny_llama)).chat([ChatMessage("go")], **asked)
    free = LoraLLM(base_model=str(tiny_llama), constrained=False, max_new_tokens=3)
    assert free.chat([ChatMessage("go")], **asked).raw["finish_reason"] in ("length", "stop")
