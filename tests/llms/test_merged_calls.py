"""A call of several requests, by votes or by windows, is one call with one answer in every way of asking."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core import PromptTemplate, SummaryIndex
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.llms import ChatMessage
from llama_index.core.schema import TextNode
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.event_handlers import BaseEventHandler
from pydantic import BaseModel, Field, field_validator

from llama_index_finetune_structured import LoraLLM, trust_of
from llama_index_finetune_structured.answer_values import class_schema
from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.json_schema import find_error
from llama_index_finetune_structured.llms.call_options import CallOptions
from llama_index_finetune_structured.llms.merged_calls import MergedCall, options_of_answers
from llama_index_finetune_structured.llms.structured import with_schema
from llama_index_finetune_structured.local.generate.request import GenerationRequest, GenerationResult
from llama_index_finetune_structured.local.generate.waiting import WaitingRequests
from llama_index_finetune_structured.local.schema.bounds import schema_key
from llama_index_finetune_structured.local.schema.list_items import ItemList, ListRules
from llama_index_finetune_structured.local.schema.text_frames import TextFrame
from llama_index_finetune_structured.trust.answer_trust import Trust
from tests.llms.structured_events import StructuredEvents

PROMPT = PromptTemplate("{thing}")
TEXT = "The first sentence stands here. A second one follows it. The third one ends the text."


class Mark(BaseModel):
    letter: Literal["a", "b", "c", "d", "e", "f"]
    size: int = Field(ge=0, le=9)


class Marks(BaseModel):
    marks: list[Mark] = Field(max_length=3)


class Few(BaseModel):
    marks: list[Literal["a", "b", "c", "d"]] = Field(max_length=2)


class Some(BaseModel):
    marks: list[Mark] = Field(min_length=1, max_length=3)


@pytest.fixture(scope="module")
def llm(tiny_llama: Path) -> LoraLLM:
    rules = ListRules(frame=TextFrame(), lists=(ItemList(name="marks"),))
    keys = [schema_key(class_schema(shape)) for shape in (Marks, Few, Some)]
    return LoraLLM(base_model=str(tiny_llama), max_new_tokens=300, list_rules=dict.fromkeys(keys, rules))


@pytest.fixture
def submitted(llm: LoraLLM, monkeypatch: pytest.MonkeyPatch) -> list[GenerationRequest]:
    """The requests that reach the engine."""
    requests: list[GenerationRequest] = []
    submit = llm._loaded.engine.submit

    def kept(request: GenerationRequest) -> Future[GenerationResult]:
        requests.append(request)
        return submit(request)

    monkeypatch.setattr(llm._loaded.engine, "submit", kept)
    return requests


def _copy(llm: LoraLLM, **update: Any) -> LoraLLM:
    return llm.model_copy(update=update)


def _asked(text: str = TEXT) -> list[ChatMessage]:
    return [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content=text)]


def _values(llm: LoraLLM, requests: list[GenerationRequest]) -> list[Any]:
    return [json.loads(llm._loaded.tokenizer.decode(request.future.result().tokens)) for request in requests]


WAYS: dict[str, dict[str, Any]] = {
    "votes": {"answers": 3},
    "windows": {"windows": 1},
    "both": {"answers": 3, "windows": 2},
}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_all_ways_of_asking_agree(llm: LoraLLM, options: dict[str, Any]) -> None:
    asked = {**with_schema(Marks, None), **options}

    async def ways() -> list[Any]:
        last = [chunk async for chunk in await llm.astream_chat(_asked(TEXT), **asked)][-1]
        completed = [chunk async for chunk in await llm.astream_complete(TEXT, **asked)][-1]
        return [
            await llm.achat(_asked(TEXT), **asked),
            last,
            await llm.acomplete(TEXT, **asked),
            completed,
        ]

    streamed = list(llm.stream_chat(_asked(), **asked))
    chats = [llm.chat(_asked(), **asked), streamed[-1]]
    completions = [llm.complete(TEXT, **asked), list(llm.stream_complete(TEXT, **asked))[-1]]
    achat, astream, acomplete, astream_complete = asyncio.run(ways())
    texts = [chat.message.content for chat in [*chats, achat, astream]]
    assert len(set(texts)) == 1
    assert "".join(chunk.delta or "" for chunk in streamed) == texts[0]
    assert len({each.text for each in [*completions, acomplete, astream_complete]}) == 1
    raws = [dict(each.raw) for each in [*chats, achat, astream]]
    trusts = [
        Trust.model_validate(raw.pop("trust")) for raw in raws
    ]  # rounding differs with what shares a batch
    assert all(raw == raws[0] for raw in raws)
    assert [trust.probability for trust in trusts] == pytest.approx([trusts[0].probability] * 4, abs=1e-4)
    Marks.model_validate_json(texts[0] or "")


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_structured_calls_of_every_kind_give_the_same_object(llm: LoraLLM, options: dict[str, Any]) -> None:
    several = _copy(llm, **options)
    whole = several.structured_predict(Marks, PROMPT, thing=TEXT)
    streamed = list(several.stream_structured_predict(Marks, PROMPT, thing=TEXT))
    assert streamed[-1] == whole
    asynchronous = asyncio.run(several.astructured_predict(Marks, PROMPT, thing=TEXT))
    assert asynchronous == whole
    assert several.as_structured_llm(Marks).complete(TEXT).raw == whole
    by_call = llm.structured_predict(Marks, PROMPT, llm_kwargs=options, thing=TEXT)
    assert by_call == whole


def test_query_engines_answer_by_votes(llm: LoraLLM, submitted: list[GenerationRequest]) -> None:
    index = SummaryIndex([TextNode(text=TEXT)])
    engine = index.as_query_engine(llm=_copy(llm, answers=3), output_cls=Marks)
    assert isinstance(engine.query("Which marks?").response, Marks)
    assert len(submitted) == 3
    assert isinstance(asyncio.run(engine.aquery("Which marks?")).response, Marks)


def test_votes_are_one_greedy_answer_and_draws_that_share_its_prompt(
    llm: LoraLLM, submitted: list[GenerationRequest]
) -> None:
    answer = llm.chat(_asked(), answers=4, **with_schema(Marks, None))
    first, *draws = submitted
    assert first.sampling.is_greedy
    assert len({draw.sampling.seed for draw in draws}) == 3
    assert {draw.sampling.temperature for draw in draws} == {0.7}
    assert {request.prompt for request in submitted} == {first.prompt}
    usage = answer.raw["usage"]
    assert usage["prompt_tokens"] == len(first.prompt)
    assert usage["completion_tokens"] == sum(len(request.future.result().tokens) for request in submitted)


def test_the_prompt_of_votes_is_read_once(llm: LoraLLM) -> None:
    tokens = 0

    def count(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal tokens
        tokens += kwargs["input_ids"].numel()

    hook = llm._loaded.engine.model.register_forward_pre_hook(count, with_kwargs=True)
    messages = _asked("Something that was not asked before. " * 20)
    try:
        raw = llm.chat(messages, answers=5, **with_schema(Marks, None)).raw
    finally:
        hook.remove()
    drafted_at_most = 8
    assert tokens < raw["usage"]["prompt_tokens"] + 5 + drafted_at_most * raw["usage"]["completion_tokens"]


def test_a_seed_repeats_a_call_and_a_greedy_call_repeats_itself(
    llm: LoraLLM, submitted: list[GenerationRequest]
) -> None:
    def tokens(**options: Any) -> list[tuple[int, ...]]:
        submitted.clear()
        llm.chat(_asked(), answers=3, **options, **with_schema(Marks, None))
        return [request.future.result().tokens for request in submitted]

    assert tokens() == tokens()
    assert tokens(seed=3) == tokens(seed=3)
    assert tokens(seed=3)[0] == tokens()[0]
    assert tokens(temperature=2.0, seed=3) == tokens(temperature=2.0, seed=3)
    assert tokens(temperature=2.0) != tokens(temperature=2.0), "random as before without a seed"


@given(st.integers(-(2**63), 2**64 - 1), st.integers(1, 20))
def test_seeds_of_draws_are_distinct_and_in_range(seed: int, count: int) -> None:
    options = CallOptions(max_new_tokens=1, temperature=0.0, top_k=0, top_p=1.0, seed=seed, answers=count)
    seeds = [CallOptions.model_validate(each.model_dump()).seed for each in options_of_answers(options)]
    assert len(set(seeds)) == count


def test_windows_are_asked_alone_and_their_lists_are_joined(
    llm: LoraLLM, submitted: list[GenerationRequest]
) -> None:
    answer = llm.chat(_asked(), windows=1, **with_schema(Few, None))
    prompts = [llm._loaded.tokenizer.decode(request.prompt) for request in submitted]
    parts = [next(part for part in ("first", "second", "third") if part in prompt) for prompt in prompts]
    assert parts == ["first", "second", "third"]
    assert all(prompt.count("Be brief.") == 1 for prompt in prompts)
    items = [mark for value in _values(llm, submitted) for mark in value["marks"]]
    assert json.loads(answer.message.content or "")["marks"] == list(dict.fromkeys(items))[:2], "maxItems"
    assert answer.raw["usage"]["prompt_tokens"] == sum(len(request.prompt) for request in submitted)


def test_the_list_of_windows_grows_in_a_stream(llm: LoraLLM) -> None:
    long = " ".join(f"Sentence {n} of the long text is this one." for n in range(6))
    chunks = list(
        llm.stream_chat(_asked(long), windows=1, temperature=1.5, seed=1, **with_schema(Marks, None))
    )
    assert len(chunks) > 1
    texts = [chunk.message.content or "" for chunk in chunks]
    assert all(after.startswith(before) for before, after in pairwise(texts))
    assert "".join(chunk.delta or "" for chunk in chunks) == texts[-1]
    assert chunks[-1].raw is not None
    assert all(chunk.raw is None for chunk in chunks[:-1])


@pytest.mark.parametrize(
    ("shape", "text"), [(Marks, "One sentence alone."), (Some, TEXT), (Mark, TEXT), (Marks, " ")]
)
def test_where_windows_cannot_be_the_text_is_asked_whole(
    llm: LoraLLM, submitted: list[GenerationRequest], shape: type[BaseModel], text: str
) -> None:
    plain = llm.chat(_asked(text), **with_schema(shape, None))
    whole = llm.chat(_asked(text), windows=1, **with_schema(shape, None))
    probability = trust_of(plain).probability
    assert probability is not None
    assert trust_of(whole).probability == pytest.approx(probability, abs=1e-4)
    for response in (plain, whole):
        response.raw.pop("trust")  # its numbers differ by rounding
    assert whole == plain
    assert len(submitted) == 2


def test_plain_text_is_answered_once(llm: LoraLLM, submitted: list[GenerationRequest]) -> None:
    several = _copy(llm, answers=3, windows=1)
    assert several.complete("Hello", max_new_tokens=5) == llm.complete("Hello", max_new_tokens=5)
    assert len(submitted) == 2
    with pytest.raises(ConfigurationError, match=r"answers=3: votes merge structured answers"):
        llm.complete("Hello", answers=3)
    with pytest.raises(ConfigurationError, match="answers=0"):
        llm.chat(_asked(), answers=0, **with_schema(Marks, None))


def test_draws_that_fail_do_not_count_and_a_first_answer_that_fails_raises(
    llm: LoraLLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    submit, failing = llm._loaded.engine.submit, list[bool]()

    def fails(request: GenerationRequest) -> Future[GenerationResult]:
        if request.sampling.is_greedy in failing:
            request.future.set_exception(RuntimeError("out of memory"))
            return request.future
        return submit(request)

    monkeypatch.setattr(llm._loaded.engine, "submit", fails)
    greedy = llm.chat(_asked(), **with_schema(Marks, None)).message.content
    failing.append(False)
    caplog.set_level(logging.DEBUG)
    assert llm.chat(_asked(), answers=3, **with_schema(Marks, None)).message.content == greedy
    assert caplog.text.count("out of memory") == 2
    failing[:] = [True]
    for windows in (0, 1):
        for ask in (MergedCall.complete, lambda call: asyncio.run(call.acomplete())):
            call = llm._chat_call(_asked(), {"answers": 3, "windows": windows, **with_schema(Marks, None)})
            assert isinstance(call, MergedCall)
            with pytest.raises(RuntimeError, match="out of memory"):
                ask(call)
            assert all(each.request.cancelled for window in call.windows for each in window)


def test_answers_that_do_not_fit_do_not_count(tiny_llama: Path) -> None:
    free = LoraLLM(base_model=str(tiny_llama), constrained=False, max_new_tokens=4)
    alone = free.chat(_asked(), **with_schema(Marks, None))
    several = free.chat(_asked(), answers=3, **with_schema(Marks, None))
    assert several.message.content == alone.message.content
    assert several.raw["finish_reason"] == alone.raw["finish_reason"] == "length"


def test_a_caller_who_goes_away_cancels_all_requests(
    llm: LoraLLM, submitted: list[GenerationRequest]
) -> None:
    asked = {"answers": 5, "windows": 1, **with_schema(Marks, None)}

    async def leave() -> None:
        task = asyncio.create_task(llm.achat(_asked(), **asked))
        while not submitted and not task.done():
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()

    asyncio.run(leave())
    assert len(submitted) == 15
    assert all(request.cancelled for request in submitted)
    submitted.clear()
    stream = llm.stream_chat(_asked(), **asked)
    next(stream)
    stream.close()
    assert all(request.cancelled for request in submitted)
    assert llm.complete("next", max_new_tokens=1).text is not None


def test_many_concurrent_calls_end_and_answer_as_alone(llm: LoraLLM) -> None:
    texts = [f"Question {n}. It has two sentences." for n in range(64)]
    several = _copy(llm, answers=5)

    async def ask() -> list[str | None]:
        calls = (several.achat(_asked(text), **with_schema(Few, None)) for text in texts)
        return [answer.message.content for answer in await asyncio.wait_for(asyncio.gather(*calls), 120)]

    together = asyncio.run(ask())
    for text, answer in list(zip(texts, together, strict=True))[::16]:
        assert several.chat(_asked(text), **with_schema(Few, None)).message.content == answer


def _request(call: object | None = None) -> GenerationRequest:
    return GenerationRequest((1,), 1, call=call)


def test_requests_of_a_large_call_let_others_pass() -> None:
    waiting = WaitingRequests(2)
    large, small = [_request("large") for _ in range(5)], [_request("small") for _ in range(2)]
    alone = _request()
    for request in [*large, *small, alone]:
        waiting.append(request)
    assert {*map(id, waiting)} == {*map(id, [*large, *small, alone])}
    taken = []
    while waiting:
        taken.append(waiting.popleft())
    assert [*map(id, taken)] == [*map(id, [*large[:2], *small, alone, *large[2:]])]


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["a", "b", "c", None]))), st.integers(1, 4))
def test_every_waiting_request_is_taken_once_and_in_the_order_of_its_call(
    steps: list[tuple[bool, str | None]], turn: int
) -> None:
    waiting, given_ones, taken = WaitingRequests(turn), [], list[GenerationRequest]()
    for adds, call in steps:
        if adds:
            given_ones.append(_request(call))
            waiting.append(given_ones[-1])
        elif waiting:
            taken.append(waiting.popleft())
    while waiting:
        taken.append(waiting.popleft())
    assert {*map(id, taken)} == {*map(id, given_ones)}
    assert len(taken) == len(given_ones)
    for call in "abc":
        ours = [id(request) for request in given_ones if request.call == call]
        assert [id(request) for request in taken if request.call == call] == ours


class _Ends(BaseEventHandler):
    """The answers that instrumentation sees at the end of chats."""

    answers: list[str] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Ends"

    def handle(self, event: Any, **_: Any) -> None:
        if event.class_name() == "LLMChatEndEvent":
            self.answers.append(event.response.message.content)


@pytest.fixture
def ends() -> Iterator[_Ends]:
    handler = _Ends()
    get_dispatcher().add_event_handler(handler)
    yield handler
    get_dispatcher().event_handlers.remove(handler)


def test_instrumentation_and_callbacks_see_one_call_with_one_answer(llm: LoraLLM, ends: _Ends) -> None:
    counter = TokenCountingHandler(tokenizer=list)
    several = _copy(llm, answers=3, windows=1, callback_manager=CallbackManager([counter]))
    answer = several.chat(_asked(), **with_schema(Marks, None)).message.content
    streamed = [*several.stream_chat(_asked(), **with_schema(Marks, None))][-1].message.content
    assert ends.answers == [answer, streamed] == [answer] * 2
    assert len(counter.llm_token_counts) == 2


def test_an_answer_that_a_validator_refuses_gets_one_more_attempt(
    llm: LoraLLM, structured_events: StructuredEvents, submitted: list[GenerationRequest]
) -> None:
    taken: set[str] = set()

    class Named(BaseModel):
        name: str = Field(pattern="^[a-f]{4,8}$")

        @field_validator("name")
        @classmethod
        def _is_free(cls, value: str) -> str:
            if value in taken:
                raise ValueError("this name is taken")
            return value

    several = _copy(llm, answers=3)
    first: Any = several.structured_predict(Named, PROMPT, thing="a name")
    taken.add(first.name)
    submitted.clear()
    second: Any = several.structured_predict(Named, PROMPT, thing="a name")
    assert second.name != first.name
    assert [retries for retries, _ in structured_events.events] == [0, 1]
    assert len(submitted) == 4, "three answers, and one more without votes"


@pytest.mark.parametrize("answers", [2, 3, 5])
def test_merged_answers_fit_the_schema(llm: LoraLLM, answers: int) -> None:
    class Shape(BaseModel):
        at: tuple[int, int]
        marks: list[Mark]
        kind: Mark | Few | None = None

    for seed in range(3):
        options = {"answers": answers, "temperature": 1.5, "seed": seed}
        text = llm.chat(_asked(), **options, **with_schema(Shape, None)).message.content or ""
        assert find_error(class_schema(Shape), json.loads(text)) is None


def test_calls_from_threads_share_batches(llm: LoraLLM) -> None:
    answers: list[Any] = []
    asked = {"answers": 3, **with_schema(Few, None)}
    threads = [
        threading.Thread(target=lambda: answers.append(llm.chat(_asked(), **asked).message.content))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 6
    assert len(set(answers)) == 1
