"""``trust_of`` takes whatever LlamaIndex returned for a structured call, in every way of asking."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from llama_index.core import PromptTemplate, SummaryIndex
from llama_index.core.llms import ChatMessage
from llama_index.core.program import LLMTextCompletionProgram
from llama_index.core.schema import MetadataMode, TextNode
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.event_handlers import BaseEventHandler
from pydantic import BaseModel, Field, RootModel, field_validator

from llama_index_finetune_structured import ConfigurationError, LoraLLM, Trust, trust_of
from llama_index_finetune_structured.answer_values import class_schema
from llama_index_finetune_structured.llms.structured import with_schema
from llama_index_finetune_structured.local.generate.loaded_models import LocalModel
from llama_index_finetune_structured.local.schema.bounds import AnswerBounds, schema_key
from llama_index_finetune_structured.trust import lookup

PROMPT = PromptTemplate("{text}")
TEXT = "Rain, 27 seconds; Snow, 28 or 29 seconds"
MESSAGES = [ChatMessage(role="system", content="Rain 27 28 29 Snow"), ChatMessage(content=TEXT)]


class Song(BaseModel):
    title: Literal["Rain", "Snow"]
    seconds: int = Field(ge=27, le=29)


FORMAT = {"response_format": with_schema(Song, None)["response_format"]}


@pytest.fixture(scope="module")
def llm(tiny_llama: Path) -> LoraLLM:
    return LoraLLM(base_model=str(tiny_llama), max_new_tokens=300)


def _program(llm: LoraLLM) -> LLMTextCompletionProgram[Song]:
    return LLMTextCompletionProgram.from_defaults(output_cls=Song, prompt=PromptTemplate("{text}"), llm=llm)


async def _last(stream: Any) -> Any:
    return [each async for each in await stream][-1]


async def _trust_in(answer: Any) -> Trust:
    return trust_of(await answer)


Way = Callable[[LoraLLM], Any]
WAYS: dict[str, Way] = {
    "predict": lambda llm: llm.structured_predict(Song, PROMPT, text=TEXT),
    "apredict": lambda llm: asyncio.run(llm.astructured_predict(Song, PROMPT, text=TEXT)),
    "stream": lambda llm: [*llm.stream_structured_predict(Song, PROMPT, text=TEXT)][-1],
    "astream": lambda llm: asyncio.run(_last(llm.astream_structured_predict(Song, PROMPT, text=TEXT))),
    "structured chat": lambda llm: llm.as_structured_llm(Song).chat(MESSAGES[1:]),
    "structured achat": lambda llm: asyncio.run(llm.as_structured_llm(Song).achat(MESSAGES[1:])),
    "structured stream": lambda llm: [*llm.as_structured_llm(Song).stream_chat(MESSAGES[1:])][-1],
    "structured astream": lambda llm: asyncio.run(
        _last(llm.as_structured_llm(Song).astream_chat(MESSAGES[1:]))
    ),
    "structured complete": lambda llm: llm.as_structured_llm(Song).complete(TEXT),
    "structured acomplete": lambda llm: asyncio.run(llm.as_structured_llm(Song).acomplete(TEXT)),
    "object in a response": lambda llm: llm.as_structured_llm(Song).complete(TEXT).raw,
    "chat": lambda llm: llm.chat(MESSAGES, **FORMAT),
    "stream of a chat": lambda llm: [*llm.stream_chat(MESSAGES, **FORMAT)][-1],
    "complete": lambda llm: llm.complete(TEXT, **FORMAT),
    "raw of a response": lambda llm: llm.complete(TEXT, **FORMAT).raw,
    "program": lambda llm: _program(llm)(llm_kwargs=FORMAT, text=TEXT),
    "program's stream": lambda llm: [*_program(llm).stream_call(llm_kwargs=FORMAT, text=TEXT)][-1],
    "asynchronous program": lambda llm: asyncio.run(
        _trust_in(_program(llm).acall(llm_kwargs=FORMAT, text=TEXT))
    ),
    "votes": lambda llm: llm.structured_predict(Song, PROMPT, llm_kwargs={"answers": 3}, text=TEXT),
}


def _check(trust: Trust, message: int | None = None) -> None:
    assert [field.path for field in trust.fields] == [("title",), ("seconds",)]
    assert [end.path for end in trust.ends] == [()]
    assert trust.probability is not None
    assert 0 < trust.probability <= 1
    for field in trust.fields:
        assert field.evidence is not None
        assert field.evidence.text == str(field.value)
        assert message in (None, field.evidence.message)


@pytest.mark.filterwarnings("ignore:The `json` method is deprecated")  # LlamaIndex calls it
@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_asking_has_its_trust(llm: LoraLLM, way: str) -> None:
    trust = trust_of(WAYS[way](llm))
    _check(trust)
    for field in trust.fields:
        assert field.evidence is not None
        assert TEXT[field.evidence.start : field.evidence.end] == str(field.value)


NODES = [
    TextNode(text="Rain and Snow are weather.", id_="weather", metadata={"page": 27}),
    TextNode(text=f"Songs: {TEXT}", id_="songs", metadata={"file": "Snow.txt"}),
]


@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize", "simple_summarize"])
@pytest.mark.parametrize("is_structured", [True, False])
@pytest.mark.parametrize("is_async", [True, False])
def test_query_engines_say_which_node_a_value_is_from(
    llm: LoraLLM, mode: Any, is_structured: bool, is_async: bool
) -> None:
    if mode == "simple_summarize" and not is_structured:
        return  # LlamaIndex answers with text
    options: dict[str, Any] = {"llm": llm.as_structured_llm(Song)} if is_structured else {"llm": llm}
    options |= {} if is_structured else {"output_cls": Song}
    engine = SummaryIndex(NODES).as_query_engine(response_mode=mode, **options)
    response: Any = asyncio.run(engine.aquery("Which?")) if is_async else engine.query("Which?")
    trust = trust_of(response)
    _check(trust)
    assert trust_of(response.response) == trust
    texts = {node.node_id: node.get_content(metadata_mode=MetadataMode.LLM) for node in NODES}
    for field in trust.fields:
        assert field.evidence is not None
        assert field.evidence.node_id is not None
        text = texts[field.evidence.node_id]
        assert text[field.evidence.node_start : field.evidence.node_end] == str(field.value)


def test_queries_at_the_same_time_keep_their_own_trust(llm: LoraLLM) -> None:
    async def ask(number: int) -> Trust:
        nodes = [TextNode(text=f"{'Filler ' * number}. {TEXT}", id_=str(number))]
        engine = SummaryIndex(nodes).as_query_engine(llm=llm, output_cls=Song)
        return trust_of(await engine.aquery("Which?"))

    async def ask_all() -> list[Trust]:
        return await asyncio.gather(*map(ask, range(8)))

    for number, trust in enumerate(asyncio.run(ask_all())):
        assert {field.evidence and field.evidence.node_id for field in trust.fields} == {str(number)}


@pytest.mark.parametrize("mode", ["condense_question", "context", "condense_plus_context"])
def test_chat_engines_answers_have_it_too(llm: LoraLLM, mode: Any) -> None:
    engine = SummaryIndex(NODES).as_chat_engine(mode, llm=llm.as_structured_llm(Song))
    trust = trust_of(engine.chat("Which?"))
    assert trust.probability is not None
    if mode == "condense_question":  # the others put the texts into a system message, as instructions
        _check(trust)


class _Kept(BaseEventHandler):
    """The trust that a listener finds in each event."""

    trusts: dict[str, Trust] = Field(default_factory=dict)

    @classmethod
    def class_name(cls) -> str:
        return "Kept"

    def handle(self, event: Any, **_: Any) -> None:
        try:
            self.trusts[event.class_name()] = trust_of(event)
        except ConfigurationError:
            self.trusts.pop(event.class_name(), None)


@pytest.fixture
def kept() -> Iterator[_Kept]:
    handler = _Kept()
    get_dispatcher().add_event_handler(handler)
    yield handler
    get_dispatcher().event_handlers.remove(handler)


def test_listeners_find_it_in_the_events(llm: LoraLLM, kept: _Kept) -> None:
    SummaryIndex(NODES).as_query_engine(llm=llm, output_cls=Song).query("Which?")
    events = {
        "StructuredAnswerEvent",
        "LLMChatEndEvent",
        "LLMStructuredPredictEndEvent",
        "SynthesizeEndEvent",
        "QueryEndEvent",
    }
    assert events <= set(kept.trusts)
    assert len({kept.trusts[name].probability for name in events}) == 1
    assert kept.trusts["QueryEndEvent"].fields[0].evidence.node_id is not None


def test_the_trust_of_a_second_attempt_is_that_of_the_second_answer(llm: LoraLLM, kept: _Kept) -> None:
    refused = llm.structured_predict(Song, PROMPT, text=TEXT).model_dump()

    class Other(Song):
        @field_validator("*")
        @classmethod
        def _is_other(cls, value: Any, info: Any) -> Any:
            if tries and refused[info.field_name] == value:
                tries.pop()
                raise ValueError("not this one")
            return value

    tries = [1]
    answer: Any = llm.structured_predict(Other, PROMPT, text=TEXT)
    trust = trust_of(answer)
    assert tries == []
    assert {field.path[0]: field.value for field in trust.fields} == answer.model_dump()
    assert kept.trusts["StructuredAnswerEvent"] == trust


def test_a_list_without_its_repetition_has_the_trust_of_what_is_left(llm: LoraLLM) -> None:
    class Only(BaseModel):
        name: Literal["Rain"]

    class Songs(RootModel[list[Only]]):
        root: list[Only] = Field(max_length=8)

    bounds = AnswerBounds(distinct=frozenset([schema_key(class_schema(Songs))]))
    answer: Any = llm.model_copy(update={"bounds": bounds}).structured_predict(Songs, PROMPT, text=TEXT)
    trust = trust_of(answer)
    assert [field.path for field in trust.fields] == [(n, "name") for n in range(len(answer.root))] or (
        not answer.root
    )
    assert {end.path for end in trust.ends} == {(), *((n,) for n in range(len(answer.root)))}


def test_values_that_are_not_in_the_texts_have_no_evidence_and_instructions_are_none(llm: LoraLLM) -> None:
    response = llm.chat([MESSAGES[0], ChatMessage(content="Nothing is here")], **FORMAT)
    assert [field.evidence for field in trust_of(response).fields] == [None, None]


def test_without_confidence_there_is_none_and_answers_are_the_same_token_for_token(llm: LoraLLM) -> None:
    off = llm.model_copy(update={"confidence": False})
    for options in (
        {},
        {"temperature": 1.5, "seed": 3},
        {"answers": 3},
        {"top_p": 0.9, "temperature": 1.0, "seed": 5},
    ):
        with_trust = llm.chat(MESSAGES, **FORMAT, **options)
        without = off.chat(MESSAGES, **FORMAT, **options)
        assert without.message.content == with_trust.message.content
        assert without.raw == {name: value for name, value in with_trust.raw.items() if name != "trust"}
    with pytest.raises(ConfigurationError, match="confidence=True"):
        trust_of(off.structured_predict(Song, PROMPT, text="something else"))


def test_without_token_probabilities_there_is_evidence_alone(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*_: Any) -> Any:
        raise ConfigurationError("the tokenizer cannot be read")

    monkeypatch.setattr(LocalModel, "token_texts", unreadable)
    llm = LoraLLM(base_model=str(tiny_llama), max_new_tokens=300)
    trust = trust_of(llm.structured_predict(Song, PROMPT, text=TEXT))
    assert trust.tokens is None
    assert trust.probability is None
    assert {trust.fields[0].probability, trust.ends[0].probability} == {None}
    assert all(field.evidence is not None for field in trust.fields)


def test_an_equal_object_of_another_model_has_none(llm: LoraLLM) -> None:
    for ask in ("predict", "structured chat"):
        answer = WAYS[ask](llm)
        with pytest.raises(ConfigurationError, match="nothing is known"):
            trust_of((answer if ask == "predict" else answer.raw).model_copy())
    program = _program(llm)(llm_kwargs=FORMAT, text=TEXT)
    with pytest.raises(ConfigurationError, match="nothing is known"):
        trust_of(program.model_copy(update={"seconds": 30}))


def test_trust_is_json_and_its_objects_leave_nothing_behind(llm: LoraLLM) -> None:
    answers = [llm.structured_predict(Song, PROMPT, text=TEXT) for _ in range(5)]
    for answer in answers:
        trust = trust_of(answer)
        assert Trust.model_validate_json(json.dumps(trust.model_dump(mode="json"))) == trust
    remembered = len(lookup._remembered)
    del answer, answers
    gc.collect()
    assert len(lookup._remembered) <= remembered - 5
