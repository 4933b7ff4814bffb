"""Keywords of a call and of a constructor: what is understood works, everything else is an error that says so."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document, PromptTemplate, SummaryIndex
from llama_index.core.extractors import DocumentContextExtractor
from llama_index.core.llms import ChatMessage
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from pydantic import BaseModel, ValidationError

from llama_index_finetune_structured import GradientBaseModelLLM, LoraLLM, hosted_llm
from llama_index_finetune_structured.errors import ConfigurationError, StructuredAnswerError
from llama_index_finetune_structured.local.generate.request import GenerationResult
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


def _text(chunks: Iterable[Any]) -> str:
    return "".join(chunk.delta or "" for chunk in chunks)


CHATS = ("chat", "achat", "stream_chat", "astream_chat")
WAYS: dict[str, Callable[..., str]] = {
    "chat": lambda llm, **kw: llm.chat(MESSAGES, **kw).message.content,
    "achat": lambda llm, **kw: asyncio.run(llm.achat(MESSAGES, **kw)).message.content,
    "stream_chat": lambda llm, **kw: _text(llm.stream_chat(MESSAGES, **kw)),
    "astream_chat": lambda llm, **kw: _text(asyncio.run(_all(llm.astream_chat(MESSAGES, **kw)))),
    "complete": lambda llm, **kw: llm.complete("go", **kw).text,
    "acomplete": lambda llm, **kw: asyncio.run(llm.acomplete("go", **kw)).text,
    "stream_complete": lambda llm, **kw: _text(llm.stream_complete("go", **kw)),
    "astream_complete": lambda llm, **kw: _text(asyncio.run(_all(llm.astream_complete("go", **kw)))),
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
    tokens = tokenizer(answer, add_special_tokens=False)["input_ids"]
    for token in tokens:
        if chunk := text.append(token):
            shown += chunk.delta
            assert chunk.text == shown
            assert expected.startswith(shown)
    last = text.last(GenerationResult(tuple(tokens), "length"))
    assert shown + last.delta == last.text == expected
    assert last.result is not None
    assert last.result.finish_reason == ("length" if expected == answer else "stop")


class _Counting:
    """A tokenizer that counts the tokens it decodes."""

    def __init__(self) -> None:
        self.inner, self.decoded = tiny.tokenizer(), 0

    def decode(self, tokens: Any, **keywords: Any) -> str:
        self.decoded += len(tokens)
        return str(self.inner.decode(tokens, **keywords))


@pytest.mark.parametrize("answer", ["plain words " * 100, "日本語のテキスト " * 50])
def test_the_work_of_a_stream_grows_with_its_length_not_with_its_square(answer: str) -> None:
    tokenizer = _Counting()
    text = _GrowingText(tokenizer, StopTexts(["never there"]))
    tokens = tokenizer.inner(answer, add_special_tokens=False)["input_ids"]
    shown = "".join(chunk.delta for token in tokens if (chunk := text.append(token)))
    assert answer.startswith(shown)
    assert tokenizer.decoded < 15 * len(tokens)


LAST = {
    "stream_chat": lambda llm, **kw: list(llm.stream_chat(MESSAGES, **kw)),
    "astream_chat": lambda llm, **kw: asyncio.run(_all(llm.astream_chat(MESSAGES, **kw))),
    "stream_complete": lambda llm, **kw: list(llm.stream_complete("go", **kw)),
    "astream_complete": lambda llm, **kw: asyncio.run(_all(llm.astream_complete("go", **kw))),
}


async def _all(stream: Any) -> list[Any]:
    return [chunk async for chunk in await stream]


@pytest.mark.parametrize("way", LAST)
def test_a_streams_last_chunk_tells_usage_and_why_it_ended_as_complete_does(llm: LoraLLM, way: str) -> None:
    full = llm.complete("go").text
    for keywords in ({}, {"stop": full[20:23]}, {"stop": full[:1]}, {"max_tokens": 1}):
        chunks = LAST[way](llm, **keywords)
        assert chunks[-1].raw == llm.complete("go", **keywords).raw
        assert [chunk.raw for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


@pytest.mark.parametrize("way", ["structured_predict", "astructured_predict", "stream_structured_predict"])
def test_an_answer_that_was_cut_says_so_however_it_was_asked_for(tiny_llama: Path, way: str) -> None:
    free = LoraLLM(base_model=str(tiny_llama), max_new_tokens=20, constrained=False)
    with pytest.raises(StructuredAnswerError, match="cut at the limit of 20 tokens"):
        STRUCTURED_WAYS[way](free)


@pytest.mark.parametrize("prompt", [5, b"x", ["x"], None])
def test_a_prompt_that_is_no_text_is_refused(llm: LoraLLM, prompt: Any) -> None:
    with pytest.raises(ConfigurationError, match="pass a text"):
        llm.complete(prompt)


@pytest.mark.parametrize(
    "ask",
    [
        lambda llm, bad: llm.complete(bad),
        lambda llm, bad: llm.complete(bad, formatted=True),
        lambda llm, bad: llm.chat([ChatMessage(role="system", content=bad), *MESSAGES]),
        lambda llm, bad: llm.structured_predict(Song, PromptTemplate("{x}"), x=bad),
    ],
)
def test_text_that_no_encoding_can_write_is_refused_by_name(llm: LoraLLM, ask: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"(the prompt|message) has a lone surrogate"):
        ask(llm, "half \ud83d of a pair")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "description": "\ud83d"},
        {"enum": ["\ud83d"]},
        {"type": "object", "properties": {"\ud83d": {"type": "null"}}, "required": ["\ud83d"]},
    ],
)
def test_a_schema_that_no_encoding_can_write_is_refused(llm: LoraLLM, schema: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="a system message has a lone surrogate"):
        llm.chat(MESSAGES, response_format={"type": "json_schema", "json_schema": {"schema": schema}})


@pytest.mark.parametrize(
    "schema",
    [{"const": float("nan")}, {"required": {"a"}}, {"const": Decimal(1)}, {"const": b"x"}, {(1, 2): 3}],
)
def test_a_schema_that_is_no_json_is_refused(llm: LoraLLM, schema: Any) -> None:
    with pytest.raises(ConfigurationError, match="response_format: its schema cannot be used"):
        llm.chat(MESSAGES, response_format={"type": "json_schema", "json_schema": {"schema": schema}})


@pytest.mark.parametrize(
    "found",
    [Song, "json", [1], {"type": "json_object"}]
    + [{"json_schema": value} for value in (None, {}, {"schema": True}, {"schema": "x"}, {"schema": [1]})],
    ids=str,
)
def test_a_response_format_without_a_schema_is_refused_with_the_right_form(llm: LoraLLM, found: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"response_format: expected .* found"):
        llm.chat(MESSAGES, response_format=found)


@pytest.mark.parametrize("found", [dict, int, list[Song], None, Song(seconds=1)], ids=str)
def test_an_output_class_that_is_none_of_pydantics_is_refused(llm: LoraLLM, found: Any) -> None:
    for ask in (
        lambda: llm.structured_predict(found, PROMPT),
        lambda: list(llm.stream_structured_predict(found, PROMPT)),
        lambda: llm.metadata_for(found),
    ):
        with pytest.raises(ConfigurationError, match=r"output_cls: expected a class of pydantic\.BaseModel"):
            ask()


@pytest.mark.parametrize("name", ["adapter", "base_model", "batch_size"])
def test_what_chooses_the_weights_cannot_change_behind_the_loaded_ones(llm: LoraLLM, name: str) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(llm, name, getattr(llm, name))
    with pytest.raises(ConfigurationError, match=f"{name} cannot change"):
        llm.model_copy(update={name: getattr(llm, name)})
    assert llm.model_copy(update={"temperature": 0.5}).temperature == 0.5


def test_a_structured_llm_follows_later_changes_of_its_llm(tiny_llama: Path) -> None:
    inner = LoraLLM(base_model=str(tiny_llama), max_new_tokens=60)
    structured = inner.as_structured_llm(Song)
    before = structured.metadata
    inner.max_new_tokens = 200
    assert (before.num_output, structured.metadata.num_output) == (60, 200)


def test_pickling_logs_nothing_and_the_copy_answers(llm: LoraLLM, caplog: pytest.LogCaptureFixture) -> None:
    expected = llm.complete("go").text  # the weights are loaded
    for original in (llm, llm.as_structured_llm(Song)):
        copy = pickle.loads(pickle.dumps(original))
        assert copy.complete("go").text == original.complete("go").text
    assert pickle.loads(pickle.dumps(llm)).complete("go").text == expected
    assert not caplog.records


def test_llamaindexs_document_context_extractor_works(llm: LoraLLM) -> None:
    documents = [Document(text="A song of 30 seconds.")]
    store = SimpleDocumentStore()
    store.add_documents(documents)
    extractor = DocumentContextExtractor(docstore=store, llm=llm, max_context_length=1000)
    assert asyncio.run(extractor.aextract(SentenceSplitter()(documents)))[0]["context"]


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
        (
            "max_tokens",
            "max_new_tokens",
            "temperature",
            "top_k",
            "top_p",
            "seed",
            "stop",
            "answers",
            "windows",
        )
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
        "astream_complete": lambda: asyncio.run(_all(llm.astream_complete("", **keywords))),
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


@pytest.mark.parametrize("way", [way for way in (*WAYS, *STRUCTURED_WAYS) if way not in CHATS])
def test_tools_are_refused_where_the_answer_is_no_turn(llm: LoraLLM, way: str) -> None:
    with pytest.raises(ConfigurationError, match=r"calls no tools|tools and response_format"):
        {**WAYS, **STRUCTURED_WAYS}[way](llm, tools=[{"type": "function", "function": {"name": "f"}}])


@pytest.mark.filterwarnings("ignore:The `json` method")  # LlamaIndex's StructuredLLM calls it
@pytest.mark.parametrize("way", [*WAYS, *STRUCTURED_WAYS])
def test_options_without_a_value_are_ignored(llm: LoraLLM, way: str) -> None:
    unused: dict[str, Any] = {
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


CONSTRUCTORS: dict[str, Callable[..., Any]] = {
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
