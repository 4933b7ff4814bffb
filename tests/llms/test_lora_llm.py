"""LoraLLM implements every LlamaIndex LLM method; with the grammar even an untrained model answers validly."""

from __future__ import annotations

import asyncio
import copy
import datetime
import enum
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from llama_index.core import PromptTemplate, SummaryIndex
from llama_index.core.llms import ChatMessage, ImageBlock
from llama_index.core.schema import TextNode
from pydantic import BaseModel, Field

from llama_index_finetune_structured import LoraLLM
from llama_index_finetune_structured.errors import (
    ConfigurationError,
    PromptTooLongError,
    StructuredAnswerError,
)
from llama_index_finetune_structured.local.schema.bounds import AnswerBounds, schema_key
from tests.llms.structured_events import StructuredEvents


class Song(BaseModel):
    title: str
    seconds: int = Field(ge=0, le=999)


class Kind(enum.Enum):
    STUDIO = "studio"
    LIVE = "live"


class Album(BaseModel):
    name: str
    kind: Kind
    songs: list[Song]
    released: datetime.date | None
    rating: Literal[1, 2, 3]


PROMPT = PromptTemplate("Describe {thing}.")


@pytest.fixture(scope="module")
def llm(tiny_llama: Path) -> LoraLLM:
    return LoraLLM(base_model=str(tiny_llama), max_new_tokens=400)


def test_a_pattern_that_no_grammar_can_express_leaves_the_rest_constrained(llm: LoraLLM) -> None:
    price = {"anyOf": [{"type": "boolean"}, {"type": "string", "pattern": "^(?!x)[a-z]+$"}]}
    schema = {"type": "object", "properties": {"price": price}, "required": ["price"]}
    response_format = {"type": "json_schema", "json_schema": {"name": "Priced", "schema": schema}}
    answer = json.loads(llm.complete("a price", response_format=response_format).text)
    assert isinstance(answer["price"], bool)


def test_a_bare_json_schema_in_response_format_constrains_a_chat(llm: LoraLLM) -> None:
    schema = {"name": "Song", "schema": Song.model_json_schema()}
    response = llm.chat(
        [ChatMessage(role="user", content="a song")],
        response_format={"type": "json_schema", "json_schema": schema},
    )
    Song.model_validate_json(response.message.content or "")
    assert response.raw["finish_reason"] == "stop"


def test_without_the_grammar_an_untrained_models_answer_raises_a_clear_error(tiny_llama: Path) -> None:
    free = LoraLLM(base_model=str(tiny_llama), max_new_tokens=30, constrained=False)
    with pytest.raises(StructuredAnswerError, match=r"no JSON object|does not fit"):
        free.structured_predict(Song, PROMPT, thing="a song")


def test_all_ways_of_asking_agree(llm: LoraLLM) -> None:
    messages = [ChatMessage(role="user", content="Hello")]

    async def ways() -> list[str]:
        stream = [chunk async for chunk in await llm.astream_chat(messages)]
        completions = [chunk async for chunk in await llm.astream_complete("Hello")]
        return [
            (await llm.achat(messages)).message.content or "",
            (await llm.acomplete("Hello")).text,
            stream[-1].message.content or "",
            "".join(chunk.delta or "" for chunk in stream),
            completions[-1].text,
        ]

    streamed = list(llm.stream_chat(messages))
    texts = [
        llm.chat(messages).message.content or "",
        llm.complete("Hello").text,
        streamed[-1].message.content or "",
        "".join(chunk.delta or "" for chunk in streamed),
        list(llm.stream_complete("Hello"))[-1].text,
        *asyncio.run(ways()),
    ]
    assert texts[0]
    assert set(texts) == {texts[0]}


def test_a_formatted_prompt_is_sent_unchanged(llm: LoraLLM) -> None:
    text = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert llm.complete(text, formatted=True).text == llm.complete("Hello").text


def test_structured_answers_stream_as_growing_objects_that_end_whole(llm: LoraLLM) -> None:
    whole = llm.structured_predict(Album, PROMPT, thing="an album")
    seen = list(llm.stream_structured_predict(Album, PROMPT, thing="an album"))
    assert len(seen) > 2
    assert seen[-1] == whole

    async def stream() -> list[Any]:
        return [part async for part in await llm.astream_structured_predict(Album, PROMPT, thing="an album")]

    assert asyncio.run(stream())[-1] == whole


def test_as_structured_llm_and_query_engines_give_objects(llm: LoraLLM) -> None:
    structured = llm.as_structured_llm(Song)
    assert isinstance(structured.chat([ChatMessage(role="user", content="a song")]).raw, Song)
    index = SummaryIndex([TextNode(text="A song of 30 seconds called Rain.")])
    engine = index.as_query_engine(llm=llm, output_cls=Song)
    assert isinstance(engine.query("Which song?").response, Song)
    assert isinstance(asyncio.run(engine.aquery("Which song?")).response, Song)


class _Batches:
    """Rows of each forward of the model, and tokens of all."""

    def __init__(self, llm: LoraLLM) -> None:
        self.sizes: list[int] = []
        self.tokens = 0
        self._hook = llm._loaded.engine.model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, _module: Any, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        batches = kwargs["layout"].batches(kwargs["input_ids"].device)
        self.sizes.append(sum(batch.rows for batch in batches))
        self.tokens += kwargs["input_ids"].numel()

    def stop(self) -> None:
        self._hook.remove()


@pytest.fixture
def batches(llm: LoraLLM) -> Iterator[_Batches]:
    counted = _Batches(llm)
    yield counted
    counted.stop()


def test_concurrent_calls_are_generated_in_one_batch_and_answer_as_alone(
    llm: LoraLLM, batches: _Batches
) -> None:
    prompts = [f"Say {'x' * n}" for n in range(8)]

    async def ask() -> list[str]:
        return [
            answer.message.content or ""
            for answer in await asyncio.gather(
                *(llm.achat([ChatMessage(role="user", content=p)], max_new_tokens=30) for p in prompts)
            )
        ]

    together = asyncio.run(ask())
    assert max(batches.sizes) == 8
    alone = [llm.complete(prompt, max_new_tokens=30).text for prompt in prompts]
    assert together == alone


def test_a_prefix_that_calls_share_is_computed_once(llm: LoraLLM, batches: _Batches) -> None:
    system = ChatMessage(role="system", content="Long rules. " * 40)
    for text in ("A question", "Brief"):
        batches.tokens = 0
        llm.chat([system, ChatMessage(role="user", content=text)], max_new_tokens=1)
    assert 0 < batches.tokens < len("Brief<|im_end|>assistant") + 12


def test_rows_that_have_ended_leave_the_batch(llm: LoraLLM, batches: _Batches) -> None:
    requests = [llm._completion_call("go on", False, {"max_new_tokens": n}).request for n in (2, 2, 2, 20)]
    for answer in [llm._loaded.engine.submit(request) for request in requests]:
        answer.result()
    assert batches.sizes[-1] == 1
    assert 1 <= batches.sizes.count(4) <= 3


def test_an_abandoned_stream_stops_the_generation(llm: LoraLLM, batches: _Batches) -> None:
    stream = llm.stream_chat([ChatMessage(role="user", content="Hello")], max_new_tokens=1500)
    next(stream)
    stream.close()
    llm.complete("next", max_new_tokens=1)
    assert len(batches.sizes) < 200


def test_a_failing_model_raises_in_every_caller_and_the_next_call_works(llm: LoraLLM) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    hook = llm._loaded.engine.model.register_forward_pre_hook(fail)

    async def ask() -> list[Any]:
        calls = (llm.acomplete(text, max_new_tokens=2) for text in "ab")
        return await asyncio.gather(*calls, return_exceptions=True)

    try:
        assert [str(error) for error in asyncio.run(ask())] == ["out of memory"] * 2
        with pytest.raises(RuntimeError, match="out of memory"):
            list(llm.stream_complete("c", max_new_tokens=2))
    finally:
        hook.remove()
    assert llm.complete("d", max_new_tokens=2).text is not None


def test_copies_share_the_loaded_weights(llm: LoraLLM) -> None:
    copied = copy.deepcopy(llm)
    assert copied._loaded is llm._loaded
    assert LoraLLM(base_model=llm.base_model, max_new_tokens=5)._loaded is llm._loaded


def test_the_free_and_the_constrained_model_get_the_same_prompt(llm: LoraLLM, tiny_llama: Path) -> None:
    free = LoraLLM(base_model=str(tiny_llama), constrained=False)
    messages = [ChatMessage(role="user", content="Q")]
    assert free.prompt_token_ids(messages, Song) == llm.prompt_token_ids(messages, Song)


def test_an_answer_that_reached_a_bound_is_reported(
    tiny_llama: Path, structured_events: StructuredEvents
) -> None:
    llm = LoraLLM(base_model=str(tiny_llama), bounds=AnswerBounds(default_characters=3), temperature=1.5)
    for n in range(20):
        llm.structured_predict(Song, PROMPT, thing=str(n))
    assert len(structured_events.events) == 20
    assert ["#/properties/title"] in [hits for _, hits in structured_events.events]


def test_a_prompt_beyond_the_context_window_is_refused_with_the_fix(llm: LoraLLM) -> None:
    with pytest.raises(PromptTooLongError, match="retrieve fewer"):
        llm.complete("x" * 9000)


@pytest.mark.parametrize("response_format", [{"type": "json_object"}, "json"])
def test_another_response_format_is_refused(llm: LoraLLM, response_format: Any) -> None:
    with pytest.raises(ConfigurationError, match="expected"):
        llm.complete("x", response_format=response_format)


def test_a_picture_is_refused(llm: LoraLLM) -> None:
    picture = ChatMessage(role="user", blocks=[ImageBlock(url="http://127.0.0.1/none.png")])
    with pytest.raises(ConfigurationError, match="type 'image', expected text"):
        llm.chat([picture])


def test_metadata_needs_no_weights(tiny_llama: Path) -> None:
    llm = LoraLLM(base_model=str(tiny_llama))
    assert llm.metadata.context_window == 8192 - 1024, "room for a schema"
    assert llm.metadata.is_chat_model
    assert llm._model is None


def test_interrupting_a_comparison_ends_the_process_in_order(tiny_llama: Path) -> None:
    """A daemon thread that still computes while Python shuts down would abort the process.

    The generating thread computes until the main thread has ended, and a little longer, however slow the machine is;
    the printed line shows that it did.
    """
    script = f"""
import os, signal, threading, time, torch
from llama_index_finetune_structured import Example, LoraLLM, Message, compare
from llama_index_finetune_structured import background
background.STOP_WITHIN_S = 0.1
llm = LoraLLM(base_model={str(tiny_llama)!r}, max_new_tokens=100_000, constrained=False)
question = Message(role="user", content="x")
answer = Message(role="assistant", content="{{}}")
row = Example(messages=(question,), answer=answer, answer_schema={{"type": "object"}})
large = torch.randn(1000, 1000)

def interrupt(*_):
    os.kill(os.getpid(), signal.SIGINT)
    hook.remove()
    deadline = time.monotonic() + 90
    while threading.main_thread().is_alive() and time.monotonic() < deadline:
        large @ large
    if not threading.main_thread().is_alive():
        shutdown = time.monotonic()
        while time.monotonic() < shutdown + 1:
            large @ large
        print("computed during shutdown", flush=True)

hook = llm._loaded.engine.model.register_forward_pre_hook(interrupt)
compare({{"llm": llm}}, [row], show_progress=False)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240)
    assert "KeyboardInterrupt" in ended.stderr
    assert "computed during shutdown" in ended.stdout
    assert "terminate called" not in ended.stderr
    assert ended.returncode in (1, 130, -signal.SIGINT)


class Coin(BaseModel):
    side: Literal["heads", "tails"]


class Throws(BaseModel):
    coins: list[Coin]


class Five(BaseModel):
    coins: list[Coin] = Field(min_length=5)


def _thrown(llm: LoraLLM, shape: type[Throws | Five]) -> list[list[str]]:
    async def ask() -> list[Any]:
        calls = (llm.astructured_predict(shape, PromptTemplate("Throw {n}"), n=n) for n in range(120))
        return await asyncio.gather(*calls)

    return [[coin.side for coin in throws.coins] for throws in asyncio.run(ask())]


def test_a_list_ends_where_it_would_repeat_an_object_if_training_never_repeated_one(tiny_llama: Path) -> None:
    def repeats(sides: list[str]) -> bool:
        return len(set(sides)) < len(sides)

    llm = LoraLLM(base_model=str(tiny_llama), max_new_tokens=300, temperature=1.5, batch_size=32)
    assert any(map(repeats, _thrown(llm, Throws)))
    llm.bounds = AnswerBounds(
        distinct=tuple(schema_key(shape.model_json_schema()) for shape in (Throws, Five))
    )
    assert not any(map(repeats, _thrown(llm, Throws)))
    assert {len(sides) for sides in _thrown(llm, Five)} == {5}  # as many as the schema requires, and no more
