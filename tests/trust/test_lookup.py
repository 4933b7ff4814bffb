"""Trust belongs to one object for as long as it lives, whatever its class does, in every thread and process."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse
from llama_index.core.base.response.schema import PydanticResponse, Response
from pydantic import BaseModel, ConfigDict, RootModel

from llama_index_finetune_structured import ConfigurationError, FieldTrust, Trust, trust_of
from llama_index_finetune_structured.trust import lookup
from llama_index_finetune_structured.trust.lookup import remember_trust


class Song(BaseModel):
    title: str = "Rain"
    raw: dict[str, Any] = {"trust": {"probability": 1.0}}  # no trust, although it is named so
    response: str = "x"


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)
    title: str = "Rain"


class AllEqual(BaseModel):
    title: str = "Rain"
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True


class Slots(BaseModel):
    __slots__ = ()
    title: str = "Rain"


class Referable(BaseModel):
    __slots__ = ("__weakref__",)
    title: str = "Rain"


class Songs(RootModel[list[Song]]):
    root: list[Song] = []


def _trust(probability: float) -> Trust:
    return Trust(probability=probability, fields=(FieldTrust(path=("a", 0), value=2**70),))


@pytest.fixture(autouse=True)
def _no_last_answer() -> Iterator[None]:
    """What this thread was answered in other tests is no answer of these."""
    before = lookup._last_answer.set(None)
    yield
    lookup._last_answer.reset(before)


@pytest.mark.parametrize(
    "text",
    ['{"artist": "Rain"}', '{"Title": "Rain"}', "{}", '{"title": "Rain"}', '{"title": "Snow"}', "[]", "7"],
)
@pytest.mark.parametrize("shape", [Song, Frozen, AllEqual, Slots, Referable, Songs])
def test_the_last_answer_is_that_of_an_object_only_if_it_was_read_from_its_text(
    shape: type[BaseModel], text: str
) -> None:
    lookup.note_answer(text, {"trust": _trust(0.5).model_dump(mode="json")})
    others = [shape([Song(title="Hail")]) if shape is Songs else shape(title="Hail")]
    if text != "{}" or shape is Songs:
        others.append(shape())
    for answer in others:
        with pytest.raises(ConfigurationError, match=r"nothing is known|is not kept"):
            trust_of(answer)
    if (text == "[]") is (shape is Songs) and text in ("[]", "{}", '{"title": "Rain"}', '{"title": "Snow"}'):
        assert trust_of(shape.model_validate_json(text)) == _trust(0.5)


@pytest.mark.parametrize("shape", [Song, Frozen, AllEqual, Referable, Songs])
def test_each_object_has_its_own_trust_and_copies_have_none(shape: type[BaseModel]) -> None:
    one, other = shape(), shape()
    remember_trust(one, _trust(0.25))
    remember_trust(other, _trust(0.5))
    assert trust_of(one) == _trust(0.25)
    assert trust_of(other) == _trust(0.5)
    remember_trust(one, _trust(0.75))
    assert trust_of(one) == _trust(0.75)
    for copy in (one.model_copy(), pickle.loads(pickle.dumps(one))):
        with pytest.raises(ConfigurationError, match="nothing is known of how sure this"):
            trust_of(copy)
    for holder in (
        PydanticResponse(one),
        ChatResponse(message=ChatMessage(content="x"), raw=one),
        CompletionResponse(text="x", raw=one),
    ):
        assert trust_of(holder) == _trust(0.75)


def test_an_object_that_cannot_be_referred_to_weakly_says_why_it_has_none() -> None:
    answer = Slots()
    remember_trust(answer, _trust(0.5))
    for asked in (answer, PydanticResponse(answer)):
        with pytest.raises(ConfigurationError, match=r"because of its __slots__; add '__weakref__'"):
            trust_of(asked)


@pytest.mark.parametrize(
    "answer", [None, "Rain", {"title": "Rain"}, Song(), Response("Rain"), PydanticResponse(None)]
)
def test_what_has_no_trust_is_a_clear_error(answer: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"this {type(answer).__name__} is: pass what a LoraLLM"):
        trust_of(answer)


def test_nothing_is_kept_of_objects_that_are_gone() -> None:
    gc.collect()
    before = len(lookup._remembered)
    for _ in range(10_000):
        remember_trust(Song(), _trust(0.5))
    assert len(lookup._remembered) <= before + 1
    cycle = Song()
    cycle.raw["self"] = cycle
    remember_trust(cycle, _trust(0.5))
    del cycle
    gc.collect()
    assert len(lookup._remembered) == before


def test_threads_do_not_disturb_each_other() -> None:
    wrong: list[float] = []

    def work(number: int) -> None:
        for n in range(300):
            answers = [Song() for _ in range(3)]
            for place, answer in enumerate(answers):
                remember_trust(answer, _trust(number + n * 100 + place))
            wrong.extend(
                n
                for place, answer in enumerate(answers)
                if trust_of(answer) != _trust(number + n * 100 + place)
            )

    threads = [threading.Thread(target=work, args=(number * 10,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_has_the_trust_of_its_objects() -> None:
    answer = Song()
    remember_trust(answer, _trust(0.5))
    reader, writer = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        writer.send(trust_of(answer).probability)
        os._exit(0)
    os.waitpid(child, 0)
    assert reader.recv() == 0.5
