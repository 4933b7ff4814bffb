"""A model that was trained with reasoning writes it before each answer, and everything said of answers holds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.agent.workflow import AgentStream, FunctionAgent
from llama_index.core.base.llms.types import ThinkingBlock
from llama_index.core.llms import ChatMessage, ChatResponse
from llama_index.core.llms import MessageRole as Role
from llama_index.core.llms.llm import LLM
from llama_index.core.program import FunctionCallingProgram
from pydantic import BaseModel

from llama_index_finetune_structured import (
    Example,
    LoraFinetuneEngine,
    LoraLLM,
    LoraSettings,
    Message,
    capture,
    check,
    export_adapter,
    served_llm,
    trust_of,
)
from llama_index_finetune_structured.answer_values import class_schema
from llama_index_finetune_structured.errors import DatasetError
from llama_index_finetune_structured.formats.wire import message_from_wire
from llama_index_finetune_structured.local.generate import decoders, engine
from llama_index_finetune_structured.local.model.adapter import read_card
from tests.agents.scripted import TOOLS, WIRE
from tests.llms import thinking_bases

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Song(BaseModel):
    title: str
    year: int


SONGS = {"Meddle": ("Pink Floyd,\n\nin <b> 1971.", 1971), "Animals": ("Pigs: ü.", 1977), "Abba": (None, 1975)}
PLAIN = ("Who are you?", "A name.", "Bob\n")
SUM, SUMMED = "add 2 and 3", "Two numbers: add."
FORMAT = {"type": "json_schema", "json_schema": {"name": "Song", "schema": class_schema(Song)}}
PROMPT = PromptTemplate("When was {song}?")


def song(title: str, reasoning: str | None, year: int) -> Example:
    text = Song(title=title, year=year).model_dump_json()
    return Example(
        messages=(Message(role="user", content=f"When was {title}?"),),
        answer=Message(role="assistant", content=text, reasoning_content=reasoning),
        transport="json_schema",
        answer_schema=class_schema(Song),
        schema_name="Song",
    )


def rows() -> list[Example]:
    asked, thought, said = PLAIN
    call = {
        "id": "c",
        "type": "function",
        "function": {"name": "add", "arguments": '{"first":2,"second":3}'},
    }
    calls = Message(role="assistant", reasoning_content=SUMMED, tool_calls=[call])
    history = (Message(role="user", content=SUM), calls, Message(role="tool", content="5", tool_call_id="c"))
    agent = Example(
        messages=history,
        answer=Message(role="assistant", content="It is 5.", reasoning_content="Done."),
        transport="tools",
        tools=WIRE,
    )
    plain = Example(
        messages=(Message(role="user", content=asked),),
        answer=Message(role="assistant", content=said, reasoning_content=thought),
    )
    return [*(song(title, *rest) for title, rest in SONGS.items()), plain, agent]


@pytest.fixture(scope="module", params=["switch", "plain"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoraLLM:
    folder = tmp_path_factory.mktemp(request.param)
    settings = LoraSettings(
        thinking="keep", epochs=80, batch_size=6, learning_rate=1e-2, rank=32, schema_prompt="none"
    )
    training = LoraFinetuneEngine(
        rows(),
        base_model=thinking_bases.save(request.param, folder / "base"),
        output_dir=folder / "run",
        config=settings,
    )
    training.finetune()
    return training.get_finetuned_model()


def thought(message: ChatMessage) -> str | None:
    texts = [block.content for block in message.blocks if isinstance(block, ThinkingBlock)]
    assert len(texts) <= 1
    return texts[0] if texts else None


def asked(title: str) -> list[ChatMessage]:
    return [ChatMessage(role=Role.USER, content=f"When was {title}?")]


def joined(chunks: Sequence[ChatResponse]) -> tuple[str, str]:
    reasoning = "".join(chunk.additional_kwargs.get("thinking_delta") or "" for chunk in chunks)
    return reasoning, "".join(chunk.delta or "" for chunk in chunks)


def usage(response: ChatResponse) -> dict[str, Any]:
    assert response.raw is not None
    return dict(response.raw["usage"])


def test_reasoning_stands_before_the_answer_in_each_way_of_asking(llm: LoraLLM) -> None:
    async def streamed(title: str) -> list[ChatResponse]:
        return [c async for c in await llm.astream_chat(asked(title), response_format=FORMAT)]

    for title, (reasoning, year) in SONGS.items():
        text = Song(title=title, year=year).model_dump_json()
        waited = [
            llm.chat(asked(title), response_format=FORMAT),
            asyncio.run(llm.achat(asked(title), response_format=FORMAT)),
        ]
        for response in waited:
            assert (thought(response.message), response.message.content) == (reasoning, text)
            assert not response.additional_kwargs
            assert [field.value for field in trust_of(response).fields] == [title, year]
        for chunks in (
            list(llm.stream_chat(asked(title), response_format=FORMAT)),
            asyncio.run(streamed(title)),
        ):
            assert joined(chunks) == (reasoning or "", text)
            assert chunks[-1].message.blocks == waited[0].message.blocks
            assert usage(chunks[-1]) == usage(waited[0])
            kinds = ["thinking_delta" in chunk.additional_kwargs for chunk in chunks]
            assert kinds == sorted(kinds, reverse=True), "no reasoning follows text"
        counts = usage(waited[0])
        assert counts["completion_tokens_details"]["reasoning_tokens"] < counts["completion_tokens"]


def test_a_plain_text_answer_has_it_too(llm: LoraLLM) -> None:
    question, reasoning, answer = PLAIN
    response = llm.complete(question)
    assert (response.text, response.additional_kwargs) == (answer, {"reasoning_content": reasoning})
    *_, last = llm.stream_complete(question)
    assert (last.text, last.additional_kwargs["reasoning_content"]) == (answer, reasoning)
    stopped = llm.complete(question, stop=["a"])
    assert (stopped.text, stopped.additional_kwargs) == ("Bob\n", {"reasoning_content": reasoning})
    assert llm.complete(question, stop="ob").text == "B", "stop texts are of the answer"


def test_programs_get_the_object_alone(llm: LoraLLM) -> None:
    meddle = Song(title="Meddle", year=1971)
    assert llm.structured_predict(Song, PROMPT, song="Meddle") == meddle
    assert asyncio.run(llm.astructured_predict(Song, PROMPT, song="Meddle")) == meddle
    objects = list(llm.stream_structured_predict(Song, PROMPT, song="Meddle"))
    assert objects[-1] == meddle
    program = FunctionCallingProgram.from_defaults(Song, prompt=PROMPT, llm=llm)
    assert program(song="Meddle") == meddle
    *_, streamed = program.stream_call(song="Meddle")
    assert streamed == meddle
    assert llm.as_structured_llm(Song).complete("When was Meddle?").raw == meddle


@pytest.mark.parametrize("streaming", [True, False])
def test_an_agent_shows_the_reasoning_and_calls_the_tool(llm: LoraLLM, streaming: bool) -> None:
    async def run() -> tuple[str, str]:
        agent = FunctionAgent(tools=TOOLS, llm=llm, streaming=streaming)
        handler = agent.run(SUM)
        shown = [
            event.thinking_delta or ""
            async for event in handler.stream_events()
            if isinstance(event, AgentStream)
        ]
        return str(await handler), "".join(shown)

    answer, shown = asyncio.run(run())
    assert answer == "It is 5."
    assert shown == (f"{SUMMED}Done." if streaming else "")


def test_what_the_tuned_model_reasons_is_captured_without_changing_the_prompt(
    llm: LoraLLM, tmp_path: Path
) -> None:
    with capture(tmp_path / "rows.jsonl") as captured:
        list(llm.stream_chat(asked("Meddle"), response_format=FORMAT))
        llm.complete(PLAIN[0])
    assert captured.summary()["captured"] == 2
    structured, plain = (
        Example.from_json(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()
    )
    assert structured.answer.reasoning_content == SONGS["Meddle"][0]
    assert plain.answer.reasoning_content == PLAIN[1]
    spoken = message_from_wire(structured.answer.wire(reasoning=True))
    silent = message_from_wire(structured.answer.wire())
    following = asked("Animals")
    assert llm.prompt_token_ids([*asked("Meddle"), spoken, *following]) == llm.prompt_token_ids(
        [*asked("Meddle"), silent, *following]
    )


@pytest.mark.parametrize("limit", [0, 1, 5, 12])
def test_reasoning_ends_at_its_limit_and_the_answer_is_whole(llm: LoraLLM, limit: int) -> None:
    for seed in range(3):
        response = llm.chat(
            asked("Meddle"),
            response_format=FORMAT,
            thinking_tokens=limit,
            temperature=2.0,
            seed=seed,
            max_new_tokens=60,
        )
        Song.model_validate_json(response.message.content or "")
        assert len(thought(response.message) or "") <= limit, "a token of this base is a byte"
        assert usage(response)["completion_tokens_details"]["reasoning_tokens"] <= limit + 11


def test_a_drawn_text_never_has_control_tokens_or_the_closing_mark_in_its_reasoning(llm: LoraLLM) -> None:
    for seed in range(3):
        response = llm.complete("Any?", temperature=5.0, seed=seed, thinking_tokens=150, max_new_tokens=5)
        reasoning = response.additional_kwargs.get("reasoning_content", "")
        assert "</think>" not in reasoning
        assert "<|im_end|>" not in reasoning


def test_votes_merge_answers_and_keep_the_reasoning_of_the_first(llm: LoraLLM) -> None:
    response = llm.chat(asked("Animals"), response_format=FORMAT, answers=3)
    assert Song.model_validate_json(response.message.content or "") == Song(title="Animals", year=1977)
    assert thought(response.message) == SONGS["Animals"][0]
    *_, last = llm.stream_chat(asked("Animals"), response_format=FORMAT, answers=3)
    assert thought(last.message) == SONGS["Animals"][0]


def test_draft_tokens_change_nothing(llm: LoraLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def all_of() -> list[Any]:
        drawn = llm.chat(asked("X"), response_format=FORMAT, temperature=1.5, seed=3, thinking_tokens=40)
        greedy = [llm.chat(asked(title), response_format=FORMAT) for title in (*SONGS, "Dogs")]
        return [(response.message.blocks, response.raw["usage"]) for response in (drawn, *greedy)]

    drafted = all_of()
    monkeypatch.setattr(decoders, "_draft", lambda _: [])
    assert all_of() == drafted


async def test_concurrent_calls_with_and_without_limits_do_not_mix(llm: LoraLLM) -> None:
    titles = [*SONGS] * 3
    limits = [None] * 6 + [0] * 3
    found = await asyncio.gather(
        *(
            llm.achat(asked(title), response_format=FORMAT, thinking_tokens=limit)
            for title, limit in zip(titles, limits, strict=True)
        )
    )
    for title, limit, response in zip(titles, limits, found, strict=True):
        assert thought(response.message) == (None if limit == 0 else SONGS[title][0])


def test_a_merged_folder_and_a_model_without_kv_cache_slots_reason_too(
    llm: LoraLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert llm.adapter is not None
    merged = LoraLLM.from_merged(export_adapter(llm.adapter, tmp_path / "merged", format="merged"))
    monkeypatch.setattr(engine, "supports_kv_cache_slots", lambda _: False)
    padded = LoraLLM.from_adapter(llm.adapter, batch_size=3)
    for other in (merged, padded):
        response = other.chat(asked("Animals"), response_format=FORMAT)
        assert thought(response.message) == SONGS["Animals"][0]
        assert other.structured_predict(Song, PROMPT, song="Animals") == Song(title="Animals", year=1977)


def test_a_server_is_told_how_the_switch_was_in_training(llm: LoraLLM) -> None:
    assert llm.adapter is not None
    card = read_card(llm.adapter)
    served = served_llm(llm.adapter, model="m", api_base="http://127.0.0.1:9/v1", api_key="k")
    told = {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}}
    assert served.additional_kwargs == (told if card.thinking_switches else {})


def test_a_call_that_ends_during_the_reasoning_leaves_the_model_free(llm: LoraLLM) -> None:
    stream = llm.stream_chat(asked("Meddle"), response_format=FORMAT)
    next(iter(stream))
    stream.close()
    assert llm.structured_predict(Song, PROMPT, song="Meddle") == Song(title="Meddle", year=1971)


def test_query_engines_leave_room_for_the_reasoning(llm: LoraLLM) -> None:
    without = llm.model_copy(update={"thinking": False})
    room = without.metadata.context_window - llm.metadata.context_window
    assert 0 < room <= (llm.thinking_tokens or 0)


def test_rows_without_reasoning_are_refused_where_it_is_to_be_kept(tmp_path: Path) -> None:
    base = thinking_bases.save("plain", tmp_path)
    bare = [song("Abba", None, 1975)]
    report = check(bare, base_model=base, thinking="keep")
    assert [problem.code for problem in report.problems] == ["no_reasoning"]
    with pytest.raises(DatasetError, match="no answer has reasoning to keep"):
        LoraFinetuneEngine(
            bare, base_model=base, output_dir=tmp_path / "run", config=LoraSettings(thinking="keep")
        ).finetune()
    kept = check([*bare, song("Meddle", "Hm.", 1971)], base_model=base, thinking="keep")
    assert kept.ok
    assert f"{kept.reasoning_tokens} of the trained tokens are reasoning" in str(kept)
    assert kept.reasoning_tokens == len("<think>\n\n</think>\n\n" * 2 + "Hm.")
    assert kept.span is not None
    assert kept.span.trained_text.startswith("<think>\n\n</think>\n\n{")
    marked = check([song("Abba", "so</think>", 1975)], base_model=base, thinking="keep")
    assert marked.problems[0].code == "cannot_render"
    assert "'</think>', which ends reasoning" in str(marked)


def test_a_base_alone_reasons_where_it_is_asked_to(tmp_path: Path) -> None:
    base = thinking_bases.save("switch", tmp_path)
    llm: LLM = LoraLLM(base_model=base, thinking=True, thinking_tokens=7)
    response = llm.chat(asked("Abba"), response_format=FORMAT)
    assert usage(response)["completion_tokens_details"]["reasoning_tokens"] >= 2
    off = LoraLLM(base_model=base)
    assert "completion_tokens_details" not in usage(off.chat(asked("Abba"), response_format=FORMAT))
