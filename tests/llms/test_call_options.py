"""Keywords of a call and of a constructor: what is understood works, everything else is an error that says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import PromptTemplate, SummaryIndex
from llama_index.core.llms import ChatMessage
from llama_index.core.schema import TextNode
from pydantic import BaseModel, ValidationError

from llama_index_finetune_structured import GradientBaseModelLLM, LoraLLM, hosted_llm
from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.local.generate.stop_texts import StopTexts
from llama_index_finetune_structured.local.generate.streaming import _GrowingText
from tests import tiny


class Song(BaseModel):
    seconds: int


MESSAGES = [ChatMessage(role="user", content="go")]
PROMPT = PromptTemplate("go")


@pytest.fixture(scope="module")
def llm(tiny_llama: Path) -> LoraLLM:
    return LoraLLM(base_model=str(tiny_llama), max_new_tokens=60)


def _chunks(stream: Any) -> tuple[str, list[str]]:
    """The last text of a stream and its deltas."""
    chunks = list(stream)
    last = chunks[-1] if chunks else None
    text = getattr(last, "text", None) or (last.message.content if hasattr(last, "message") else "")
    return text or "", [chunk.delta or "" for chunk in chunks]


async def _achunks(stream: Any) -> tuple[str, list[str]]:
    return _chunks([chunk async for chunk in await stream])


WAYS: dict[str, Callable[..., str]] = {
    "chat": lambda llm, **kw: llm.chat(MESSAGES, **kw).message.content,
    "achat": lambda llm, **kw: asyncio.run(llm.achat(MESSAGES, **kw)).message.content,
    "stream_chat": lambda llm, **kw: "".join(_chunks(llm.stream_chat(MESSAGES, **kw))[1]),
    "astream_chat": lambda llm, **kw: "".join(asyncio.run(_achunks(llm.astream_chat(MESSAGES, **kw)))[1]),
    "complete": lambda llm, **kw: llm.complete("go", **kw).text,
    "acomplete": lambda llm, **kw: asyncio.run(llm.acomplete("go", **kw)).text,
    "stream_complete": lambda llm, **kw: "".join(_chunks(llm.stream_complete("go", **kw))[1]),
    "astream_complete": lambda llm, **kw: "".join(asyncio.run(_achunks(llm.astream_complete("go", **kw)))[1]),
}
STRUCTURED_WAYS: dict[str, Callable[..., Any]] = {
    "structured_predict": lambda llm, **kw: llm.structured_predict(Song, PROMPT, llm_kwargs=kw),
    "astructured_predict": lambda llm, **kw: asyncio.run(
        llm.astructured_predict(Song, PROMPT, llm_kwargs=kw)
    ),
    "stream_structured_predict": lambda llm, **kw: list(
        llm.stream_structured_predict(Song, PROMPT, llm_kwargs=kw)
    )[-1],
    "as_structured_llm": lambda llm, **kw: llm.as_structured_llm(Song).chat(MESSAGES, **kw).raw,
    "as_structured_llm.stream": lambda llm, **kw: (
        list(llm.as_structured_llm(Song).stream_chat(MESSAGES, **kw))[-1].raw
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_ends_before_the_first_stop_text_in_every_way_of_asking(llm: LoraLLM, way: str) -> None:
    full = WAYS["complete"](llm)
    for stop in (
        full[20],
        full[20:24],
        [full[30:33], full[20:23], "never there"],
        full[:1],
        "never there",
        [],
    ):
        texts = [stop] if isinstance(stop, str) else stop
        expected = full[: min((full.find(text) for text in texts if text in full), default=len(full))]
        assert WAYS[way](llm, stop=stop) == expected


def test_a_stop_text_ends_the_generation_with_the_reason_stop(llm: LoraLLM) -> None:
    full = llm.complete("go")
    stopped = llm.complete("go", stop=full.text[5:8])
    assert (full.raw["finish_reason"], stopped.raw["finish_reason"]) == ("length", "stop")
    assert stopped.raw["usage"]["completion_tokens"] < full.raw["usage"]["completion_tokens"] / 2


@pytest.mark.parametrize(
    ("answer", "stops"),
    [
        ("one. two.\nthree", ["\n"]),
        ("Straße — 日本語 und mehr", ["本語"]),
        ("Straße — 日本語 und mehr", ["— 日本"]),
        ("aaaaab aab", ["aab"]),
        ("ababac!", ["abac"]),
        ("ends with a start of it: STO", ["STOP"]),
        ("x STOP y END z", ["END", "STOP"]),
        ("🎵🎶 done", ["🎶"]),
        ("STOP at once", ["STOP"]),
    ],
)
def test_no_chunk_of_a_stream_shows_a_part_of_a_stop_text(answer: str, stops: list[str]) -> None:
    tokenizer = (
        tiny.tokenizer()
    )  # a token a byte: every character of several bytes, and every stop text, is split
    expected = answer[: min((answer.find(stop) for stop in stops if stop in answer), default=len(answer))]
    text, shown = _GrowingText(tokenizer, StopTexts(stops)), ""
    for token in tokenizer(answer, add_special_tokens=False)["input_ids"]:
        if chunk := text.append(token):
            shown += chunk[1]
            assert chunk[0] == shown
            assert expected.startswith(shown)
    if chunk := text.rest():
        shown += chunk[1]
    assert shown == expected


@pytest.mark.parametrize("stop", ["", ["a", ""], 5, [5], b"x"])
def test_a_stop_text_that_is_empty_or_no_text_is_refused(llm: LoraLLM, stop: Any) -> None:
    with pytest.raises(ConfigurationError, match="stop"):
        llm.complete("go", stop=stop)


@pytest.mark.parametrize("way", STRUCTURED_WAYS)
def test_a_structured_call_takes_no_stop_text(llm: LoraLLM, way: str) -> None:
    with pytest.raises(ConfigurationError, match="stop= would cut"):
        STRUCTURED_WAYS[way](llm, stop="}")


OUT_OF_RANGE = [
    {name: value} for name in ("max_tokens", "max_new_tokens") for value in (0, -1, 2.5, "9", True)
] + [
    {"max_tokens": 5, "max_new_tokens": 6},
    {"temperature": -0.1},
    {"temperature": float("nan")},
    {"temperature": float("inf")},
    {"temperature": "hot"},
    {"top_k": -1},
    {"top_k": 1.5},
    {"top_p": 0},
    {"top_p": 1.1},
    {"seed": "x"},
    {"seed": 2**64},
]


@pytest.mark.parametrize("keywords", OUT_OF_RANGE, ids=str)
@pytest.mark.parametrize("way", ["chat", "astream_complete"])
def test_a_value_out_of_range_is_an_error_that_names_it(
    llm: LoraLLM, way: str, keywords: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError, match="|".join(keywords)):
        WAYS[way](llm, **keywords)


@pytest.mark.parametrize(
    "keywords",
    [{"max_new_tokens": 0}, {"temperature": -1}, {"temperature": float("inf")}, {"top_k": -1}, {"top_p": 2}],
    ids=str,
)
def test_the_constructor_refuses_the_same_values(tiny_llama: Path, keywords: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LoraLLM(base_model=str(tiny_llama), **keywords)


def test_a_field_set_out_of_range_later_is_an_error_of_the_call(tiny_llama: Path) -> None:
    llm = LoraLLM(base_model=str(tiny_llama))
    llm.temperature = -1.0
    with pytest.raises(ConfigurationError, match="temperature=-1"):
        llm.complete("go")


def test_none_means_the_default(llm: LoraLLM) -> None:
    nothing = dict.fromkeys(
        ("max_tokens", "max_new_tokens", "temperature", "top_k", "top_p", "seed", "stop", "response_format")
    )
    assert llm.complete("go", **nothing).text == llm.complete("go").text


def test_one_token_more_or_less_is_what_max_tokens_says(llm: LoraLLM) -> None:
    for count in (1, 2, 7):
        for name in ("max_tokens", "max_new_tokens"):
            assert llm.complete("go", **{name: count}).raw["usage"]["completion_tokens"] == count


@pytest.mark.parametrize("keywords", [{}, {"formatted": True}])
@pytest.mark.parametrize("way", ["complete", "acomplete", "stream_complete", "astream_complete"])
def test_an_empty_prompt_is_refused(llm: LoraLLM, way: str, keywords: dict[str, Any]) -> None:
    ask = {
        "complete": lambda: llm.complete("", **keywords),
        "acomplete": lambda: asyncio.run(llm.acomplete("", **keywords)),
        "stream_complete": lambda: list(llm.stream_complete("", **keywords)),
        "astream_complete": lambda: asyncio.run(_achunks(llm.astream_complete("", **keywords))),
    }[way]
    with pytest.raises(ConfigurationError, match="empty"):
        ask()


def test_a_chat_without_messages_is_refused(llm: LoraLLM) -> None:
    with pytest.raises(ConfigurationError, match="no messages"):
        llm.chat([])


UNKNOWN = {"best_of": 0, "json_schema": {"a": 1}, "top_n": 3, "functions": [{"name": "f"}], "logprobs": True}


@pytest.mark.parametrize("name", UNKNOWN)
@pytest.mark.parametrize("way", [*WAYS, *STRUCTURED_WAYS])
def test_an_unknown_keyword_is_an_error_that_names_those_there_are(llm: LoraLLM, way: str, name: str) -> None:
    ask = {**WAYS, **STRUCTURED_WAYS}[way]
    with pytest.raises(ConfigurationError, match=rf"no keyword {name}.*max_new_tokens.*stop"):
        ask(llm, **{name: UNKNOWN[name]})


def test_the_nearest_keyword_is_named(llm: LoraLLM) -> None:
    with pytest.raises(ConfigurationError, match="did you mean temperature"):
        llm.complete("go", temperatures=1.0)


@pytest.mark.parametrize("way", [*WAYS, *STRUCTURED_WAYS])
def test_tools_are_refused_by_name(llm: LoraLLM, way: str) -> None:
    with pytest.raises(ConfigurationError, match="LoraLLM calls no tools"):
        {**WAYS, **STRUCTURED_WAYS}[way](llm, tools=[{"type": "function", "function": {"name": "f"}}])


@pytest.mark.filterwarnings("ignore:The `json` method")  # LlamaIndex's StructuredLLM calls it
@pytest.mark.parametrize("way", [*WAYS, *STRUCTURED_WAYS])
def test_options_without_a_value_are_ignored(llm: LoraLLM, way: str) -> None:
    unused = {
        "tools": [],
        "tool_choice": None,
        "allow_parallel_tool_calls": False,
        "stream": False,
        "user": "",
    }
    ask = {**WAYS, **STRUCTURED_WAYS}[way]
    assert ask(llm, **unused) == ask(llm)


def test_a_query_engine_passes_nothing_that_is_refused(llm: LoraLLM) -> None:
    index = SummaryIndex([TextNode(text="A song of 30 seconds.")])
    for streaming in (False, True):
        assert str(index.as_query_engine(llm=llm, streaming=streaming).query("Which?"))
    assert isinstance(index.as_query_engine(llm=llm, output_cls=Song).query("Which?").response, Song)


CONSTRUCTORS = {
    "LoraLLM": lambda base, **kw: LoraLLM(base_model=base, **kw),
    "gradient": lambda _, **kw: GradientBaseModelLLM(
        base_model_slug="s", host="http://127.0.0.1:1", access_token="t", **kw
    ),
    "hosted": lambda _, **kw: hosted_llm("gpt-4o-mini", api_base="http://127.0.0.1:1", api_key="k", **kw),
    "hosted_like": lambda _, **kw: hosted_llm("mine", api_base="http://127.0.0.1:1", api_key="k", **kw),
}


@pytest.mark.parametrize("make", CONSTRUCTORS)
def test_an_unknown_constructor_argument_is_an_error_that_names_the_nearest_field(
    tiny_llama: Path, make: str
) -> None:
    with pytest.raises(ConfigurationError, match=r"no field temperatures.*did you mean temperature"):
        CONSTRUCTORS[make](str(tiny_llama), temperatures=0.5)
    assert CONSTRUCTORS[make](str(tiny_llama), temperature=0.5, system_prompt="Brief.").temperature == 0.5


def test_an_adapter_is_not_lost_by_a_misspelt_name(tiny_llama: Path) -> None:
    with pytest.raises(ConfigurationError, match="did you mean adapter"):
        LoraLLM(base_model=str(tiny_llama), adaptor="x")


def test_a_dumped_llm_is_loaded_again(llm: LoraLLM) -> None:
    assert LoraLLM.from_dict(llm.to_dict()).max_new_tokens == llm.max_new_tokens


@pytest.mark.parametrize(
    "keywords", [{"max_tokens": 0}, {"top_p": 2.0}, {"top_k": 0}, {"stop": [""]}], ids=str
)
def test_gradients_options_are_checked_in_each_call_too(keywords: dict[str, Any]) -> None:
    llm = GradientBaseModelLLM(base_model_slug="s", host="http://127.0.0.1:1", access_token="t")
    with pytest.raises(ConfigurationError, match="|".join(keywords)):
        llm.complete("go", **keywords)
