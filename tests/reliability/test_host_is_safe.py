"""Whatever fails inside capture, the host gets its answer; the error is counted, and logged once."""

from __future__ import annotations

import errno
import gc
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import AudioBlock, DocumentBlock, ImageBlock, TextBlock
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms import ChatMessage

from llama_index_finetune_structured.capture import (
    GradientAIFineTuningHandler,
    OpenAIFineTuningHandler,
    capture,
    read_examples,
)
from llama_index_finetune_structured.capture import calls as calls_module
from llama_index_finetune_structured.capture import recorder as recorder_module
from llama_index_finetune_structured.capture import tracker as tracker_module
from llama_index_finetune_structured.capture.scopes import BlockScope
from llama_index_finetune_structured.capture.spans import SpanTree
from llama_index_finetune_structured.jsonl_store import JsonlStore
from tests.capture.fakes import SONG, EchoLLM

PLACES: list[tuple[Any, str]] = [
    (SpanTree, "enter"),
    (SpanTree, "leave"),
    (SpanTree, "end_call"),
    (BlockScope, "covers"),
    (tracker_module, "start_call"),
    (calls_module, "prompt_messages"),
    (recorder_module, "read_request"),
    (recorder_module, "check_answer"),
    (recorder_module, "example_row"),
    (JsonlStore, "append"),
]
FAULTS: list[Callable[[], Exception]] = [
    lambda: RuntimeError("sk-secret-in-a-message-0123456789"),
    lambda: OSError(errno.ENOSPC, "No space left on device"),
    MemoryError,
    lambda: RecursionError("too deep"),
    lambda: UnicodeEncodeError("utf-8", "x", 0, 1, "no"),
]


def test_a_hundred_errors_do_not_reach_the_host_and_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.collect()  # streams that earlier tests abandoned end outside the calls below
    llm = EchoLLM()
    raised = 0
    with caplog.at_level(logging.WARNING), capture(tmp_path / "calls.jsonl") as captured:
        for number in range(100):
            place, name = PLACES[number % 10]
            fault = FAULTS[number // 10 % 5]
            real = getattr(place, name)

            def breaks(*_: Any, _fault: Any = fault, **__: Any) -> Any:
                nonlocal raised
                raised += 1
                raise _fault()

            monkeypatch.setattr(place, name, breaks)
            assert llm.complete(f"{number}").text == SONG
            monkeypatch.setattr(place, name, real)
        llm.complete("and on it goes")
    assert raised >= 100
    assert captured.summary()["internal_errors"] == raised
    assert str(next(iter(read_examples(captured.path))).messages[0].content)
    assert [str(example.messages[0].content) for example in read_examples(captured.path)][
        -1
    ] == "and on it goes"
    assert caplog.text.count("later failures are only counted") == 1
    assert len(caplog.records) == 1
    assert captured.summary()["outside"] == 0, "an error inside capture makes no call one from outside"
    assert "sk-secret" not in caplog.text


ODD_MESSAGES = [
    ChatMessage(role="user", blocks=[TextBlock(text="a"), AudioBlock(audio=b"xx")]),
    ChatMessage(role="user", blocks=[DocumentBlock(data=b"xx", document_mimetype="application/pdf")]),
    ChatMessage(role="user", blocks=[ImageBlock(image=b"xx")]),
    ChatMessage(role="user", blocks=[]),
    ChatMessage(role="user", content="half \ud800"),
]


@pytest.mark.parametrize("handler", [OpenAIFineTuningHandler, GradientAIFineTuningHandler])
def test_events_that_a_format_cannot_express_are_left_out_with_one_warning(
    handler: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = handler(tmp_path / "calls.jsonl")
    llm = EchoLLM(callback_manager=CallbackManager([recorder]))
    for messages in ([], *([message] for message in ODD_MESSAGES), [ChatMessage(content="plain")]):
        assert llm.chat(messages).message.content == SONG
    assert (
        len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
    )  # no message at all
    caplog.clear()
    recorder.save_finetuning_events(tmp_path / "train.jsonl")
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    assert "plain" in lines[-1]
    assert len(lines) == (3 if handler is GradientAIFineTuningHandler else 6)
    left_out = [record.getMessage() for record in caplog.records]
    assert len(left_out) == (6 - len(lines) > 0)
    assert all("3 events were left out; the first, " in text for text in left_out)


def test_a_redactor_may_call_an_llm(tmp_path: Path) -> None:
    llm = EchoLLM()

    def redact(text: str) -> str:
        llm.complete("Which names are in this text?")
        return text.replace("Ada", "[NAME]")

    with capture(tmp_path / "calls.jsonl", redact=redact, everywhere=True) as captured:
        llm.complete("Who is Ada?")
    assert [row.messages[0].content for row in read_examples(captured.path)] == ["Who is [NAME]?"]
    assert captured.summary()["captured"] == 1


def test_a_full_disk_loses_records_but_no_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = JsonlStore.append
    full = False

    def append(store: JsonlStore, line: bytes) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(store, line)

    monkeypatch.setattr(JsonlStore, "append", append)
    llm = EchoLLM()
    with capture(tmp_path / "calls.jsonl") as captured:
        for number in range(30):
            full = 10 <= number < 20
            assert llm.complete(str(number)).text == SONG
    assert captured.summary()["captured"] == 20
    assert captured.summary()["internal_errors"] == 10
    kept = [str(example.messages[0].content) for example in read_examples(captured.path)]
    assert kept == [str(number) for number in range(30) if not 10 <= number < 20]


@pytest.mark.parametrize(
    "odd",
    [
        {"metadata": object()},
        {"tools": object()},
        {"tools": [object(), {"type": "function"}]},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "no such type"}}}},
        {"tool_choice": {"type": "function", "function": {"name": "nobody"}}, "tools": [{"function": {}}]},
        {"json_schema": {"$ref": "#/nowhere"}},
        {"format": "json"},
        {"tools": float("nan")},
    ],
)
def test_unusual_arguments_do_not_fail_the_call(odd: dict[str, Any], tmp_path: Path) -> None:
    with capture(tmp_path / "calls.jsonl") as captured:
        assert EchoLLM().chat([ChatMessage(role="user", content="x")], **odd).message.content == SONG
    summary = captured.summary()
    assert summary["captured"] + sum(summary["rejected"].values()) + summary["internal_errors"] == 1


def test_a_lone_surrogate_is_written_as_a_question_mark(tmp_path: Path) -> None:
    with capture(tmp_path / "calls.jsonl") as captured:
        EchoLLM(reply="half \ud83d of a face").complete("x")
    assert [example.answer_text() for example in read_examples(captured.path)] == ["half ? of a face"]


def call_and_wait() -> None:
    EchoLLM().complete("x")
    time.sleep(5)


def test_control_c_inside_capture_reaches_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with capture(tmp_path / "calls.jsonl"):
        monkeypatch.setattr(JsonlStore, "append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            call_and_wait()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_handlers_and_blocks_leave_no_file_open(tmp_path: Path) -> None:
    def one(number: int) -> None:
        handler = OpenAIFineTuningHandler()
        llm = EchoLLM(callback_manager=CallbackManager([handler]))
        with capture(tmp_path / f"{number}.jsonl"):
            llm.complete("x")
            stream = llm.stream_complete("read after the block")
        list(stream)

    one(0)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for number in range(1, 20):
        one(number)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_worker_captures_into_the_same_capture(tmp_path: Path) -> None:
    llm = EchoLLM()
    with capture(tmp_path / "calls.jsonl") as captured:
        llm.complete("parent")
        for number in range(3):
            child = os.fork()
            if child == 0:
                llm.complete(f"child {number}")
                os._exit(0 if captured.summary()["captured"] == 1 else 1)
            assert os.waitpid(child, 0)[1] == 0
        llm.complete("parent again")
    asked = [str(example.messages[0].content) for example in read_examples(captured.path)]
    assert asked == ["parent", "parent again", "child 0", "child 1", "child 2"]
    assert captured.summary()["captured"] == 2
