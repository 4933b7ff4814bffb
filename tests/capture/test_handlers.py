"""The handlers' public methods, and that each handler records its own calls only."""

from __future__ import annotations

import base64
import copy
import gc
import json
import logging
import os
import stat
import threading
from pathlib import Path
from typing import Any

import llama_index.core
import pytest
from llama_index.core import Settings
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.llms import ChatMessage, ChatResponse, ImageBlock, TextBlock
from llama_index.core.tools import FunctionTool

from llama_index_finetune_structured.capture import (
    GradientAIFineTuningHandler,
    OpenAIFineTuningHandler,
    capture,
    read_examples,
)
from llama_index_finetune_structured.errors import ConfigurationError, DatasetError
from tests.capture.fakes import SONG, EchoLLM, OpenAIServer, Song, index_of_songs


@pytest.mark.parametrize("handler", [OpenAIFineTuningHandler, GradientAIFineTuningHandler])
def test_handlers_are_callback_handlers(handler: type) -> None:
    assert "BaseCallbackHandler" in [base.__name__ for base in handler.__mro__]


def test_events_are_messages_and_response_by_id() -> None:
    handler = OpenAIFineTuningHandler()
    llm = EchoLLM(reply="Echoes", callback_manager=CallbackManager([handler]))
    llm.chat([ChatMessage(role="system", content="Be brief."), ChatMessage(content="A song?")])
    llm.complete("Another?")
    events = handler.get_finetuning_events()
    assert len(events) == 2
    first, second = events.values()
    assert [(item.role.value, item.content) for item in first["messages"]] == [
        ("system", "Be brief."),
        ("user", "A song?"),
    ]
    assert first["response"].content == "Echoes"
    assert [item.content for item in second["messages"]] == ["Another?"]


def test_tool_calls_are_read_back_in_events(server: OpenAIServer) -> None:
    handler = OpenAIFineTuningHandler()
    llm = server.llm("gpt-4", callback_manager=CallbackManager([handler]))
    llm.as_structured_llm(Song).chat([ChatMessage(content="A song?")])
    (event,) = handler.get_finetuning_events().values()
    (call,) = event["response"].blocks
    assert (call.tool_name, json.loads(call.tool_kwargs)) == ("Song", json.loads(SONG))


def test_saving_says_how_many_and_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handler = OpenAIFineTuningHandler()
    llm = EchoLLM(reply="Echoes", callback_manager=CallbackManager([handler]))
    llm.chat([ChatMessage(content="A song?")])
    llm.chat([ChatMessage(content="A song?")])
    target = tmp_path / "new folder" / "events.jsonl"
    handler.save_finetuning_events(target)
    assert capsys.readouterr().out == f"Wrote 2 examples to {target}\n"
    lines = target.read_text().splitlines()
    expected = {"role": "user", "content": "A song?"}, {"role": "assistant", "content": "Echoes"}
    assert [json.loads(line) for line in lines] == [{"messages": list(expected)}] * 2
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_tools_are_saved_with_the_messages(server: OpenAIServer, tmp_path: Path) -> None:
    handler = OpenAIFineTuningHandler()
    llm = server.llm("gpt-4", callback_manager=CallbackManager([handler]))
    llm.as_structured_llm(Song).chat([ChatMessage(content="A song?")])
    handler.save_finetuning_events(tmp_path / "events.jsonl")
    line = json.loads((tmp_path / "events.jsonl").read_text())
    assert line["tools"] == server.requests[0]["tools"]
    assert line["messages"][-1]["tool_calls"][0]["function"] == {"name": "Song", "arguments": SONG}


def test_gradient_line_is_the_text_that_is_served_and_the_answer(tmp_path: Path) -> None:
    handler = GradientAIFineTuningHandler()
    llm = EchoLLM(reply="Echoes", callback_manager=CallbackManager([handler]))
    llm.chat([ChatMessage(role="system", content="Be brief."), ChatMessage(content="A song?")])
    llm.complete("A song is")
    handler.save_finetuning_events(tmp_path / "events.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert lines == [
        {"inputs": "system: Be brief.\nuser: A song?\nassistant: Echoes"},
        {"inputs": "A song isEchoes"},
    ]


class ParallelLLM(EchoLLM):
    """Answers every chat with two tool calls."""

    def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        blocks = [ToolCallBlock(tool_call_id=i, tool_name="f", tool_kwargs={"n": i}) for i in "ab"]
        return ChatResponse(message=ChatMessage(role="assistant", blocks=blocks))


def test_events_that_gradient_cannot_express_are_left_out_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handler, target = GradientAIFineTuningHandler(), tmp_path / "events.jsonl"
    managed = CallbackManager([handler])
    handler.attach(parallel := ParallelLLM())
    for _ in range(2):
        parallel.chat([ChatMessage(content="Two?")])
    with pytest.raises(DatasetError, match=r"none of the 2 events can be written .*2 tool calls"):
        handler.save_finetuning_events(target)
    assert not target.exists()
    EchoLLM(reply="Echoes", callback_manager=managed).chat([ChatMessage(content="A song?")])
    with caplog.at_level(logging.WARNING):
        handler.save_finetuning_events(target)
    assert [json.loads(line) for line in target.read_text().splitlines()] == [
        {"inputs": "user: A song?\nassistant: Echoes"}
    ]
    (warning,) = caplog.messages
    assert "2 events were left out; the first, " in warning


def test_the_capture_itself_is_not_replaced_by_its_export(path: Path) -> None:
    handler = OpenAIFineTuningHandler(path)
    EchoLLM(callback_manager=CallbackManager([handler])).complete("x")
    (path.parent / "link.jsonl").symlink_to(path)
    with pytest.raises(ConfigurationError, match="this is the capture that is being exported"):
        handler.save_finetuning_events(path.parent / "link.jsonl")
    with pytest.raises(ConfigurationError, match="this is the capture that is being exported"):
        handler.save_finetuning_events(path)
    assert len(list(read_examples(path))) == 1


def test_a_deep_copied_llm_reports_to_the_same_handler() -> None:
    handler = OpenAIFineTuningHandler()
    llm = EchoLLM(callback_manager=CallbackManager([handler]))
    copy.deepcopy(llm).complete("x")
    assert handler.summary()["captured"] == 1


def test_the_global_handler_reaches_every_llm(monkeypatch: pytest.MonkeyPatch) -> None:
    handler, llm = OpenAIFineTuningHandler(), EchoLLM()
    monkeypatch.setattr(llama_index.core, "global_handler", handler)
    llm.complete("x")
    assert handler.summary()["captured"] == 1


def test_images_are_read_back_in_events(tmp_path: Path) -> None:
    handler = OpenAIFineTuningHandler()
    llm = EchoLLM(reply="a cat", callback_manager=CallbackManager([handler]))
    picture = base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    )
    blocks = [
        TextBlock(text="What is this?"),
        ImageBlock(image=picture),
        ImageBlock(url="http://127.0.0.1/cat.png", detail="low"),
    ]
    llm.chat([ChatMessage(role="user", blocks=blocks)])
    (event,) = handler.get_finetuning_events().values()
    text, inline, linked = event["messages"][0].blocks
    assert text.text == "What is this?"
    assert inline.resolve_image().read() == picture
    assert str(linked.url) == "http://127.0.0.1/cat.png"
    handler.save_finetuning_events(tmp_path / "events.jsonl")
    parts = json.loads((tmp_path / "events.jsonl").read_text())["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url", "image_url"]
    assert parts[2]["image_url"] == {"url": "http://127.0.0.1/cat.png", "detail": "low"}


def test_two_handlers_see_only_their_own_llm() -> None:
    first, second = OpenAIFineTuningHandler(), OpenAIFineTuningHandler()
    one = EchoLLM(reply="one", callback_manager=CallbackManager([first]))
    two = EchoLLM(reply="two", callback_manager=CallbackManager([second]))
    for _ in range(3):
        one.complete("1")
    two.complete("2")
    assert (first.summary()["captured"], second.summary()["captured"]) == (3, 1)
    assert [example.answer_text() for example in read_examples(second.path)] == ["two"]


def test_settings_leave_an_llm_with_its_own_handler_alone() -> None:
    general, special = OpenAIFineTuningHandler(), OpenAIFineTuningHandler()
    plain, own = EchoLLM(), EchoLLM(callback_manager=CallbackManager([special]))
    debugged = EchoLLM(callback_manager=CallbackManager([LlamaDebugHandler(print_trace_on_end=False)]))
    Settings.callback_manager = CallbackManager([general])
    for llm in (plain, own, debugged):
        llm.complete("x")
    assert (general.summary()["captured"], special.summary()["captured"]) == (2, 1)


def test_an_unattached_llm_that_runs_at_the_same_time_is_not_recorded() -> None:
    handler = OpenAIFineTuningHandler()
    mine, other = EchoLLM(callback_manager=CallbackManager([handler])), EchoLLM(reply="not mine")
    stop = threading.Event()

    def noise() -> None:
        while not stop.is_set():
            other.complete("noise")

    threads = [threading.Thread(target=noise) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        mine.complete("x")
    stop.set()
    for thread in threads:
        thread.join()
    assert [example.answer_text() for example in read_examples(handler.path)] == [SONG] * 50


def test_an_llm_handed_to_an_engine_is_recorded_when_it_was_attached(server: OpenAIServer) -> None:
    handler = OpenAIFineTuningHandler()
    llm = server.llm("gpt-4", callback_manager=CallbackManager([handler]))
    engine = index_of_songs().as_query_engine(llm=llm, output_cls=Song)
    engine.query("lost: LlamaIndex has replaced the manager")
    handler.attach(llm)
    engine.query("kept")
    assert [example.query for example in read_examples(handler.path)] == ["kept"]


def test_an_engine_or_an_index_can_be_attached_itself(server: OpenAIServer) -> None:
    llm, index = server.llm("gpt-4"), index_of_songs()
    engine = index.as_query_engine(llm=llm, output_cls=Song)
    for component in (engine, index):
        handler = OpenAIFineTuningHandler()
        handler.attach(component)
        engine.query("Which song?")
        llm.complete("not through the engine")
        assert [example.query for example in read_examples(handler.path)] == ["Which song?"]


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince211")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_an_agent_can_be_attached_itself(server: OpenAIServer) -> None:
    handler, llm = OpenAIFineTuningHandler(), server.llm("gpt-4")
    agent = FunctionAgent(
        tools=[FunctionTool.from_defaults(fn=lambda title, year: title, name="play")], llm=llm
    )
    handler.attach(agent)
    await agent.run("Play a song.")
    await llm.acomplete("not through the agent")
    await llm._async_http_client.aclose()
    assert handler.summary()["captured"] == 2


def test_a_handler_on_one_index_does_not_see_another_engine_of_the_same_llm(server: OpenAIServer) -> None:
    handler, llm = OpenAIFineTuningHandler(), server.llm("gpt-4")
    mine = index_of_songs(callback_manager=CallbackManager([handler])).as_query_engine(
        llm=llm, output_cls=Song
    )
    other = index_of_songs().as_query_engine(llm=llm, output_cls=Song)
    mine.query("mine")
    other.query("other")
    assert [example.query for example in read_examples(handler.path)] == ["mine"]


def test_a_handler_and_a_block_both_record_the_same_call(path: Path) -> None:
    handler = OpenAIFineTuningHandler()
    llm = EchoLLM(callback_manager=CallbackManager([handler]))
    with capture(path) as captured:
        llm.chat([ChatMessage(content="x")])
    assert (captured.summary()["captured"], handler.summary()["captured"]) == (1, 1)


def test_the_temporary_store_is_private_and_deleted_with_its_handler() -> None:
    handler = OpenAIFineTuningHandler()
    EchoLLM(callback_manager=CallbackManager([handler])).complete("x")
    file = handler.path
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    del handler
    gc.collect()
    assert not file.parent.exists()


def test_a_handler_with_a_path_keeps_its_file(path: Path) -> None:
    handler = OpenAIFineTuningHandler(path)
    EchoLLM(callback_manager=CallbackManager([handler])).complete("x")
    del handler
    gc.collect()
    assert len(list(read_examples(path))) == 1
    assert os.listdir(path.parent) == [path.name]
