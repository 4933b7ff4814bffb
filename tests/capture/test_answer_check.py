"""Only answers that match their request become examples; the others are stored as rejects with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.base.llms.types import CacheControl, CachePoint, TextBlock, ToolCallBlock
from llama_index.core.llms import ChatMessage, ChatResponse
from llama_index.core.llms.callbacks import llm_chat_callback
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel, Field, RootModel, SecretStr, field_validator

from llama_index_finetune_structured import FinetuneDataset, OpenAIFinetuneEngine
from llama_index_finetune_structured.capture import capture, read_examples
from tests.capture.fakes import (
    SONG,
    EchoLLM,
    OpenAIServer,
    SilentStructuredLLM,
    Song,
    index_of_songs,
    tool_message,
)
from tests.fakes.openai_server import OpenAIServer as TrainingServer


class CallingLLM(EchoLLM):
    """Answers with a tool call."""

    call: ToolCallBlock

    @llm_chat_callback()
    def chat(self, messages: Any, **_: Any) -> ChatResponse:
        return ChatResponse(message=ChatMessage(role="assistant", blocks=[self.call]))


HELLO = [ChatMessage(role="user", content="A song?")]


def rejects(path: Path) -> list[dict[str, Any]]:
    file = path.with_name("songs.rejects.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("I do not know.", "not_json"),
        ('{"title": "Echoes", "year": 19', "not_json"),
        ('{"title": "Echoes"}', "schema_mismatch"),
        ('{"title": "Echoes", "year": "late"}', "schema_mismatch"),
        ("", "empty_answer"),
    ],
)
def test_text_that_does_not_parse_is_rejected(reply: str, reason: str, path: Path) -> None:
    engine = index_of_songs().as_query_engine(llm=EchoLLM(reply=reply), output_cls=Song)
    with capture(path) as captured:
        assert str(engine.query("Which song?")) == "Empty Response"  # all that LlamaIndex reports
    assert captured.summary()["captured"] == 0
    assert captured.summary()["rejected"] == {reason: 1}
    assert list(read_examples(path)) == []
    (row,) = rejects(path)
    assert row["reason"] == reason
    assert row["example"]["answer"]["content"] == reply
    assert row["example"]["query"] == "Which song?"
    assert row["example"]["answer_schema"] == Song.model_json_schema()
    assert row["example"]["messages"]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (tool_message("Song", '{"title": "Echoes"}'), "schema_mismatch"),
        (tool_message("Song", '{"title": "Ech'), "not_json"),
        (tool_message("Singer", SONG), "unknown_tool"),
        ({"role": "assistant", "content": SONG}, "no_tool_call"),
    ],
)
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_tool_calls_that_do_not_fit_are_rejected(
    message: dict[str, Any], reason: str, asynchronous: bool, path: Path, server: OpenAIServer
) -> None:
    server.reply = lambda _: message
    llm = server.llm("gpt-4")
    program = FunctionCallingProgram.from_defaults(output_cls=Song, prompt_template_str="A song?", llm=llm)
    with capture(path) as captured, pytest.raises(Exception, match=r"\w"):
        await program.acall() if asynchronous else program()
    await llm._async_http_client.aclose()
    assert captured.summary() == {
        "captured": 0,
        "rejected": {reason: 1},
        "dropped_by_redaction": 0,
        "internal_errors": 0,
        "outside": 0,
    }
    assert rejects(path)[0]["example"]["tools"] == server.requests[0]["tools"]


@pytest.mark.parametrize(
    ("finish", "reason"), [("length", "truncated"), ("content_filter", "content_filter")]
)
def test_answers_cut_short_are_rejected(finish: str, reason: str, path: Path, server: OpenAIServer) -> None:
    server.finish_reason = finish
    with capture(path) as captured:
        server.llm("gpt-4").chat(HELLO)
        list(server.llm("gpt-4").stream_chat(HELLO))
        list(server.llm("gpt-4").stream_chat(HELLO, stream_options={"include_usage": True}))
    assert captured.summary()["rejected"] == {reason: 3}


def test_json_schema_answers_are_checked(path: Path, server: OpenAIServer) -> None:
    server.reply = lambda _: {"role": "assistant", "content": '{"title": 7, "year": 1971}'}
    with capture(path) as captured, pytest.raises(ValueError, match="title"):
        server.llm("gpt-4o-mini").as_structured_llm(Song).chat(HELLO)
    assert captured.summary()["rejected"] == {"schema_mismatch": 1}


class StrictSong(BaseModel):
    title: str
    year: int

    @field_validator("year")
    @classmethod
    def _recent(cls, year: int) -> int:
        if year < 2000:
            raise ValueError("too old")
        return year


@pytest.mark.parametrize("model", ["gpt-4", "gpt-4o-mini"])
def test_the_validators_of_the_class_are_applied(model: str, path: Path, server: OpenAIServer) -> None:
    with capture(path) as captured, pytest.raises(ValueError, match="old"):
        server.llm(model).as_structured_llm(StrictSong).chat(HELLO)
    assert captured.summary()["rejected"] == {"schema_mismatch": 1}


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")
@pytest.mark.parametrize("model", ["gpt-4", "gpt-4o-mini"])
def test_the_validators_of_the_class_are_applied_in_streams(
    model: str, path: Path, server: OpenAIServer
) -> None:
    with capture(path) as captured:
        list(server.llm(model).as_structured_llm(StrictSong).stream_chat(HELLO))
    assert captured.summary()["rejected"] == {"schema_mismatch": 1}


def test_output_cls_checks_calls_that_carry_no_schema(path: Path) -> None:
    with capture(path, output_cls=Song) as captured:
        EchoLLM(reply="Sure! " + SONG).chat(HELLO)
        EchoLLM(reply="prose").chat(HELLO)
    (example,) = read_examples(path)
    assert example.answer_schema == Song.model_json_schema()
    assert captured.summary()["rejected"] == {"not_json": 1}


def test_output_cls_leaves_calls_with_another_schema_to_that_schema(path: Path, server: OpenAIServer) -> None:
    class Singer(BaseModel):
        name: str

    server.reply = lambda _: {"role": "assistant", "content": '{"name": "Rick"}'}
    with capture(path, output_cls=Song):
        server.llm("gpt-4o-mini").as_structured_llm(Singer).chat(HELLO)
    (example,) = read_examples(path)
    assert example.schema_name == "Singer"


@pytest.mark.parametrize("number", ["NaN", "-Infinity"])
def test_numbers_that_are_not_json_are_rejected(number: str, path: Path) -> None:
    class Weight(BaseModel):
        kilograms: float

    with capture(path, output_cls=Weight) as captured:
        EchoLLM(reply=f'{{"kilograms": {number}}}').chat(HELLO)
    assert captured.summary()["rejected"] == {"not_json": 1}
    assert list(read_examples(path)) == []


@pytest.mark.parametrize("wrapped", ["```json\n{}\n```", "Here it is:\n{}\nEnjoy!", "  {}\n"])
def test_text_around_a_json_answer_is_removed(wrapped: str, path: Path) -> None:
    reply = wrapped.replace("{}", SONG)
    engine = index_of_songs().as_query_engine(llm=EchoLLM(reply=reply), output_cls=Song)
    with capture(path):
        assert json.loads(str(engine.query("Which song?"))) == json.loads(SONG)
    (example,) = read_examples(path)
    assert example.answer_text() == SONG
    assert example.metadata["answer_as_sent"] == reply


def test_a_tool_answered_with_text_is_fine_when_the_choice_was_free(path: Path, server: OpenAIServer) -> None:
    server.reply = lambda _: {"role": "assistant", "content": "I need no tool."}
    tool = FunctionTool.from_defaults(fn=lambda title: title, name="play")
    with capture(path):
        server.llm("gpt-4").chat_with_tools([tool], "Hello")
    (example,) = read_examples(path)
    assert (example.transport, example.answer_text()) == ("tools", "I need no tool.")
    assert (example.answer_schema, example.schema_name) == (None, None)
    assert example.tools is not None


def test_a_text_answer_to_a_structured_request_is_rejected(path: Path, server: OpenAIServer) -> None:
    server.reply = lambda _: {"role": "assistant", "content": "I do not know."}
    with capture(path) as captured:
        list(server.llm("gpt-4").stream_structured_predict(Song, PromptTemplate("A song?")))
    assert captured.summary()["rejected"] == {"not_json": 1}


@pytest.mark.parametrize(("choice", "captured_calls"), [("auto", 1), ("any", 0), ("tool", 0)])
def test_anthropics_form_of_a_tool_choice_is_understood(path: Path, choice: str, captured_calls: int) -> None:
    tool = {"name": "play", "description": "", "input_schema": {"type": "object"}}
    with capture(path) as captured:
        EchoLLM(reply="I need no tool.").chat(HELLO, tools=[tool], tool_choice={"type": choice})
    assert captured.summary()["captured"] == captured_calls
    assert captured.summary()["rejected"] == ({} if captured_calls else {"no_tool_call": 1})


def test_calls_of_tools_in_a_providers_own_form_are_kept(path: Path) -> None:
    tools = [{"function_declarations": [{"name": "play", "parameters": {"type": "OBJECT"}}]}]
    call = ToolCallBlock(tool_call_id="1", tool_name="play", tool_kwargs={"title": "One"})
    with capture(path) as captured:
        CallingLLM(call=call).chat(HELLO, tools=tools)
    assert captured.summary()["captured"] == 1


def test_without_parallel_calls_the_first_is_kept_as_by_llamaindex(path: Path, server: OpenAIServer) -> None:
    server.reply = lambda _: tool_message("Song", SONG, '{"title": "Money", "year": 1973}')
    with capture(path):
        server.llm("gpt-4").as_structured_llm(Song).chat(HELLO)
    (example,) = read_examples(path)
    assert example.answer.tool_calls is not None
    assert [call["function"]["arguments"] for call in example.answer.tool_calls] == [SONG]  # type: ignore[index, call-overload]


def test_identical_calls_are_all_kept(path: Path) -> None:
    with capture(path) as captured:
        for _ in range(5):
            EchoLLM().chat(HELLO)
    examples = list(read_examples(path))
    assert len(examples) == captured.summary()["captured"] == 5
    assert len({example.id for example in examples}) == 1
    assert len({example.metadata["event_id"] for example in examples}) == 5


class Track(BaseModel):
    name: str
    kind: Literal["song", "speech"] = "song"


class Album(BaseModel):
    """Braces {in} the docstring, "quotes", and nested classes."""

    title: str
    tracks: list[Track]


@pytest.mark.parametrize("is_chat", [True, False])
def test_schema_text_is_the_part_of_the_prompt_that_contains_the_schema(is_chat: bool, path: Path) -> None:
    reply = '{"title": "Meddle", "tracks": [{"name": "Echoes"}]}'
    engine = index_of_songs().as_query_engine(llm=EchoLLM(reply=reply, is_chat=is_chat), output_cls=Album)
    with capture(path):
        engine.query("Which album?")
    (example,) = read_examples(path)
    text = str(example.schema_text)
    assert text.startswith("\n\n\nHere's a JSON schema to follow:\n{{")
    assert text.endswith("do not repeat the schema.\n")
    (holder,) = [message for message in example.messages if text in str(message.content)]
    assert "schema" not in str(holder.content).replace(text, "")
    assert example.answer_schema == Album.model_json_schema()


def test_a_schema_in_another_layout_is_found_in_the_prompt(path: Path) -> None:
    schema = json.dumps(Song.model_json_schema(), indent=2)
    with capture(path, output_cls=Song):
        EchoLLM().chat([ChatMessage(role="user", content=f"Answer by this schema:\n{schema}\nA song?")])
    (example,) = read_examples(path)
    assert example.schema_text == schema


class Money(BaseModel):
    """A price."""

    amount: float = Field(multiple_of=0.01)
    currency: str = Field(pattern=r"^\p{Lu}{3}$")
    cents: int = 0


def test_calls_that_the_class_takes_reach_a_training_job(
    path: Path, server: OpenAIServer, tmp_path: Path
) -> None:
    """One in another spelling than the schema's, one float that is no exact multiple: both stopped the job."""
    spelled = ['{"amount": 0.29, "currency": "EUR"}', '{"amount": "0.29", "currency": "EUR", "cents": "7"}']
    server.reply = lambda request: tool_message("Money", spelled["spelled" in str(request["messages"])])
    with capture(path) as captured:
        for number in range(15):
            how = "spelled" if number == 3 else "plain"
            question = [ChatMessage(role="user", content=f"{how} {number}?")]
            server.llm("gpt-4").as_structured_llm(Money).chat(question)
    assert captured.summary()["captured"] == 15
    data = FinetuneDataset.load(path)
    assert data[3].answer_text() == '{"amount":0.29,"currency":"EUR","cents":7}'
    assert data[0].answer_text() == spelled[0]
    with TrainingServer() as training:
        engine = OpenAIFinetuneEngine(
            "gpt-4.1-mini",
            data=data,
            api_base=training.base,
            api_key=training.key,
            output_dir=tmp_path / "runs",
            verbose=False,
        )
        engine.finetune()
        assert len(training.jobs) == 1


class Title(RootModel[str]):
    """A title."""


class Years(RootModel[list[int]]):
    """Years."""


@pytest.mark.parametrize(
    ("output_cls", "reply", "text"),
    [
        (Title, ' "Echoes" ', '"Echoes"'),
        (Years, "[1971]", "[1971]"),
        (RootModel[int], "7\n", "7"),
        (RootModel[bool], "true", "true"),
    ],
)
def test_answers_whose_root_is_no_object_are_captured(
    output_cls: type[BaseModel], reply: str, text: str, path: Path
) -> None:
    with capture(path, output_cls=output_cls):
        EchoLLM(reply=reply).chat(HELLO)
    (example,) = read_examples(path)
    assert example.answer_text() == text


@pytest.mark.parametrize("reply", ["Echoes", "NaN", "123 songs", "'quoted'"])
def test_prose_is_no_answer_of_any_root(reply: str, path: Path) -> None:
    with capture(path, output_cls=Title) as captured:
        EchoLLM(reply=reply).chat(HELLO)
    assert captured.summary()["rejected"] == {"not_json": 1}


def test_json_of_another_root_than_the_class_is_a_mismatch(path: Path) -> None:
    with capture(path, output_cls=Song) as captured:
        EchoLLM(reply="123").chat(HELLO)
    assert captured.summary()["rejected"] == {"schema_mismatch": 1}


class Keyed(BaseModel):
    title: str
    year: SecretStr


def test_an_object_that_cannot_be_written_is_skipped_with_one_warning(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Predicts(SilentStructuredLLM):
        def structured_predict(self, output_cls: Any, prompt: Any, **_: Any) -> Any:
            return output_cls(title="Echoes", year="s3cret")

    with capture(path) as captured:
        for _ in range(2):
            song = Predicts().structured_predict(Keyed, PromptTemplate("A song?"))
            assert song.year.get_secret_value() == "s3cret"
    assert (captured.summary()["captured"], captured.summary()["internal_errors"]) == (0, 2)
    warnings = [record for record in caplog.records if str(path) in record.getMessage()]
    assert [record.levelname for record in warnings] == ["WARNING"]
    assert "s3cret" not in caplog.text
    assert list(read_examples(path)) == []


def test_a_deep_answer_is_rejected(path: Path) -> None:
    with capture(path, output_cls=Song) as captured:
        EchoLLM(reply='{"title": ' + "[" * 100_000).chat(HELLO)
        EchoLLM(reply="[" * 100_000 + "]" * 100_000).chat(HELLO)
    assert captured.summary()["rejected"] == {"not_json": 2}
    assert captured.summary()["internal_errors"] == 0


@pytest.mark.parametrize("reference", ["#/$defs/No", "https://example.org/a.json", "#/properties/title"])
def test_a_schema_that_cannot_be_used_checks_nothing(reference: str, path: Path) -> None:
    schema = {"type": "object", "properties": {"title": {"$ref": reference}}}
    with capture(path) as captured:
        EchoLLM().chat(HELLO, json_schema=schema)
    assert captured.summary()["captured"] == 1


def test_cache_points_of_a_call_are_not_captured(path: Path) -> None:
    cached = CachePoint(cache_control=CacheControl(type="ephemeral"))
    with capture(path):
        EchoLLM().chat([ChatMessage(role="user", blocks=[TextBlock(text="A song?"), cached])])
    (example,) = read_examples(path)
    assert example.messages[0].content == "A song?"
