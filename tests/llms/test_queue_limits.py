"""Limits of a local model's calls: one too many is refused at once, one too late ends, and its place is free again."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.llms import ChatMessage
from pydantic import BaseModel, field_validator

from llama_index_finetune_structured import EngineError, LoraLLM, QueueFullError, RequestTimeoutError
from llama_index_finetune_structured.llms.call_places import CallPlaces

PROMPT = PromptTemplate("Which colour is number {number}?")
LONG = 4000  # tokens; far more than a time limit of a test lets through


class Colour(BaseModel):
    name: str
    warm: bool


def _llm(base: Path, **more: Any) -> LoraLLM:
    return LoraLLM(base_model=base, **{"max_new_tokens": 8, "batch_size": 8, **more})


@pytest.fixture
def llm(tiny_llama: Path) -> LoraLLM:
    """With places for two calls, and loaded."""
    made = _llm(tiny_llama, max_queue=2)
    made.complete("warm")
    return made


@pytest.fixture
def busy(llm: LoraLLM) -> Iterator[LoraLLM]:
    """An LLM all of whose places are taken, by streams that are not read."""
    held = [llm.stream_complete("x", max_new_tokens=LONG) for _ in range(2)]
    yield llm
    held.clear()


def _messages(number: int = 0) -> list[ChatMessage]:
    return [ChatMessage(content=f"Number {number}?")]


def test_of_200_concurrent_calls_those_beyond_the_limit_are_refused_at_once_and_the_rest_answered(
    tiny_llama: Path,
) -> None:
    llm = _llm(tiny_llama, max_queue=50)
    llm.complete("warm")

    answered, before = 0, list[int]()

    async def one(number: int) -> Any:
        nonlocal answered
        try:
            found = (await llm.achat(_messages(number))).message.content
        except QueueFullError as error:
            before.append(answered)
            return error
        answered += 1
        return found

    async def ask() -> list[Any]:
        return await asyncio.gather(*map(one, range(200)))

    answers = asyncio.run(ask())
    kinds = Counter(type(answer).__name__ for answer in answers)
    assert kinds == {"str": 50, "QueueFullError": 150}
    assert "50 calls wait or are being answered, as many as max_queue allows" in str(answers[-1])
    assert max(before) == 0, "no refusal waits for an answer, whatever the machine's speed"
    assert llm.complete("again").text is not None


def test_threads_are_limited_too_and_never_more_than_the_limit_is_answered_at_a_time(
    tiny_llama: Path,
) -> None:
    llm = _llm(tiny_llama, max_queue=5)
    llm.complete("warm")
    barrier = threading.Barrier(20)

    def one(number: int) -> str:
        barrier.wait()
        try:
            llm.complete(f"Number {number}", max_new_tokens=200)
        except QueueFullError:
            return "refused"
        return "answered"

    with ThreadPoolExecutor(20) as threads:
        outcomes = Counter(threads.map(one, range(20)))
    assert outcomes["answered"] >= 5
    assert outcomes["answered"] + outcomes["refused"] == 20


_WAYS: dict[str, Callable[[LoraLLM], Any]] = {
    "chat": lambda llm: llm.chat(_messages()),
    "complete": lambda llm: llm.complete("x"),
    "stream_chat": lambda llm: list(llm.stream_chat(_messages())),
    "stream_complete": lambda llm: list(llm.stream_complete("x")),
    "structured_predict": lambda llm: llm.structured_predict(Colour, PROMPT, number=1),
    "stream_structured_predict": lambda llm: list(llm.stream_structured_predict(Colour, PROMPT, number=1)),
    "structured_llm": lambda llm: llm.as_structured_llm(Colour).chat(_messages()),
}


async def _all(chunks: Any) -> list[Any]:
    return [chunk async for chunk in await chunks]


_ASYNC_WAYS: dict[str, Callable[[LoraLLM], Any]] = {
    "achat": lambda llm: llm.achat(_messages()),
    "acomplete": lambda llm: llm.acomplete("x"),
    "astream_chat": lambda llm: _all(llm.astream_chat(_messages())),
    "astream_complete": lambda llm: _all(llm.astream_complete("x")),
    "astructured_predict": lambda llm: llm.astructured_predict(Colour, PROMPT, number=1),
    "astream_structured_predict": lambda llm: _all(llm.astream_structured_predict(Colour, PROMPT, number=1)),
}


def _call(way: str, llm: LoraLLM) -> Any:
    if way in _WAYS:
        return _WAYS[way](llm)

    async def ask() -> Any:
        return await _ASYNC_WAYS[way](llm)

    return asyncio.run(ask())


@pytest.mark.parametrize("way", [*_WAYS, *_ASYNC_WAYS])
def test_each_way_of_calling_is_refused_when_full_and_answers_when_a_place_is_free(
    way: str, llm: LoraLLM
) -> None:
    held = [llm.stream_complete("x", max_new_tokens=LONG) for _ in range(2)]
    with pytest.raises(QueueFullError, match="raise max_queue"):
        _call(way, llm)
    del held
    gc.collect()
    for _ in range(3):  # each call gives its place back
        assert _call(way, llm.model_copy(update={"max_new_tokens": 30}))


@pytest.mark.parametrize("way", [*_WAYS, *_ASYNC_WAYS])
def test_each_way_of_calling_ends_in_time_and_frees_its_place(way: str, tiny_llama: Path) -> None:
    llm = _llm(tiny_llama, max_queue=1, max_new_tokens=LONG)
    llm.complete("warm", max_new_tokens=1)
    late = llm.model_copy(update={"request_timeout": 1e-6})
    with pytest.raises(RequestTimeoutError, match="raise request_timeout") as raised:
        _call(way, late)
    assert isinstance(raised.value, TimeoutError | EngineError)
    assert llm.complete("next", max_new_tokens=1).text is not None


def test_a_call_that_waits_behind_long_ones_ends_in_time(tiny_llama: Path) -> None:
    llm = _llm(tiny_llama, batch_size=1)
    llm.complete("warm")
    long = llm.stream_complete("x", max_new_tokens=LONG)
    next(long)
    began = time.monotonic()
    with pytest.raises(RequestTimeoutError):
        llm.model_copy(update={"request_timeout": 0.3}).complete("short")
    assert time.monotonic() - began < 5
    long.close()
    assert llm.complete("after").text is not None


def test_a_late_answer_is_no_longer_generated(tiny_llama: Path) -> None:
    llm = _llm(tiny_llama, request_timeout=0.2)
    llm.model_copy(update={"request_timeout": None}).complete("warm")
    with pytest.raises(RequestTimeoutError):
        llm.complete("x", max_new_tokens=LONG)
    engine = llm._loaded.engine
    deadline = time.monotonic() + 20
    while engine._thread is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert engine._thread is None


def test_a_stream_in_progress_ends_in_time_with_what_it_has_shown(tiny_llama: Path) -> None:
    llm = _llm(tiny_llama, max_queue=1)
    llm.complete("warm")
    chunks = llm.model_copy(update={"request_timeout": 0.5}).stream_complete("x", max_new_tokens=LONG)
    assert next(chunks).text is not None
    with pytest.raises(RequestTimeoutError):
        list(chunks)
    assert llm.complete("next").text is not None


def test_an_answer_in_time_is_the_same_as_without_limits(tiny_llama: Path) -> None:
    free, limited = _llm(tiny_llama), _llm(tiny_llama, max_queue=3, request_timeout=60)
    assert limited.complete("x").text == free.complete("x").text


def test_a_stream_that_is_closed_or_never_read_gives_its_place_back(busy: LoraLLM) -> None:
    with pytest.raises(QueueFullError):
        busy.complete("x")
    gc.collect()


def test_a_failed_call_gives_its_place_back(llm: LoraLLM) -> None:
    kept = []
    for _ in range(5):
        with pytest.raises(ValueError, match="no keyword") as raised:
            llm.stream_complete("x", nonsense=1)
        kept.append(raised)  # with the frames of the call
    assert llm.complete("x").text is not None


def test_a_second_attempt_needs_no_place_of_its_own(tiny_llama: Path) -> None:
    asked: list[bool] = []

    class Strict(BaseModel):
        warm: bool

        @field_validator("warm")
        @classmethod
        def _refuse_the_first(cls, value: bool) -> bool:
            asked.append(value)
            if len(asked) == 1:
                raise ValueError("again")
            return value

    llm = _llm(tiny_llama, max_queue=1, max_new_tokens=100)
    assert isinstance(llm.structured_predict(Strict, PROMPT, number=1), Strict)
    assert len(asked) >= 2
    assert not llm._places.taken


def test_cancelled_tasks_give_their_places_back(llm: LoraLLM) -> None:
    async def ask() -> None:
        tasks = [asyncio.create_task(llm.acomplete("x", max_new_tokens=LONG)) for _ in range(2)]
        await asyncio.sleep(0.2)
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        await llm.acomplete("y")

    asyncio.run(ask())
    assert not llm._places.taken


def test_copies_share_the_places_and_a_pickled_one_has_its_own(busy: LoraLLM) -> None:
    for same in (busy.model_copy(), copy.deepcopy(busy)):
        with pytest.raises(QueueFullError):
            same.complete("x")
    assert pickle.loads(pickle.dumps(busy)).complete("x").text is not None


def test_places_whose_time_is_over_count_as_free() -> None:
    places = CallPlaces()
    first = places.take(1, 0.01)
    with pytest.raises(QueueFullError):
        places.take(1, 0.01)
    time.sleep(0.02)
    second = places.take(1, None)
    first.release()
    with pytest.raises(QueueFullError):
        places.take(1, None)
    second.release()
    second.release()
    places.take(1, None)


@pytest.mark.parametrize(
    "limits", [{"max_queue": 0}, {"request_timeout": 0}, {"request_timeout": float("inf")}]
)
def test_limits_out_of_range_are_refused(limits: dict[str, Any], tiny_llama: Path) -> None:
    with pytest.raises(ValueError, match=next(iter(limits))):
        _llm(tiny_llama, **limits)
