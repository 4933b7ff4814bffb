"""Only completed calls are stored, each exactly once, and the host's objects are unchanged."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.tools import FunctionTool

from llama_index_finetune_structured.capture import capture, read_examples
from llama_index_finetune_structured.capture.tracker import tracker
from tests.capture.fakes import SONG, EchoLLM, OpenAIServer, tool_message

HELLO = [ChatMessage(role="user", content="A song?")]


def answers(path: Path) -> list[str]:
    return [example.answer_text() for example in read_examples(path)]


def test_failed_call_is_never_saved(path: Path) -> None:
    with capture(path) as captured:
        for call in (lambda: EchoLLM(fails=True).complete("x"), lambda: EchoLLM(fails=True).chat(HELLO)):
            with pytest.raises(RuntimeError, match="the provider is down"):
                call()
    assert answers(path) == []
    assert captured.summary()["internal_errors"] == 0


def test_refused_request_is_never_saved(path: Path, server: OpenAIServer) -> None:
    server.status = 400
    with capture(path), pytest.raises(Exception, match="no"):
        server.llm("gpt-4").chat(HELLO)
    assert answers(path) == []


def test_stream_that_breaks_off_is_never_saved(path: Path) -> None:
    class BreakingLLM(EchoLLM):
        @llm_completion_callback()
        def stream_complete(self, prompt: str, **_: Any) -> Any:
            def stream() -> Iterator[CompletionResponse]:
                yield CompletionResponse(text="half", delta="half")
                raise RuntimeError("the connection is gone")

            return stream()

    with capture(path), pytest.raises(RuntimeError, match="gone"):
        list(BreakingLLM().stream_chat(HELLO))
    assert answers(path) == []


def test_abandoned_and_unread_streams_are_not_saved(path: Path) -> None:
    llm = EchoLLM()
    with capture(path):
        open_calls = len(tracker.tree)
        next(iter(llm.stream_complete("abandoned")))
        llm.stream_chat(HELLO)
        closed = llm.stream_complete("closed")
        next(closed)
        closed.close()
        del closed
        gc.collect()
        assert len(tracker.tree) == open_calls
    assert answers(path) == []


async def test_abandoned_async_stream_is_not_saved(path: Path) -> None:
    llm = EchoLLM()
    with capture(path):
        open_calls = len(tracker.tree)
        stream = await llm.astream_chat(HELLO)
        await anext(stream)
        await stream.aclose()
        del stream
        gc.collect()
        await asyncio.sleep(0.01)  # the loop closes the generators inside
        assert len(tracker.tree) == open_calls
    assert answers(path) == []


def test_a_stream_started_in_the_block_and_read_after_it_is_saved(path: Path) -> None:
    with capture(path):
        stream = EchoLLM().stream_complete("x")
    list(stream)
    assert answers(path) == [SONG]


async def test_interleaved_streams_of_one_llm_are_kept_apart(path: Path) -> None:
    llm = EchoLLM()
    with capture(path):
        streams = [
            await llm.astream_chat([ChatMessage(role="user", content=str(number))]) for number in range(8)
        ]
        waiting = list(enumerate(streams))
        while waiting:
            for item in list(waiting):
                try:
                    await anext(item[1])
                except StopAsyncIteration:
                    waiting.remove(item)
    assert sorted(str(example.messages[-1].content) for example in read_examples(path)) == list("01234567")


async def test_the_same_messages_sampled_at_once_are_all_kept(path: Path) -> None:
    llm = EchoLLM()

    async def sample() -> None:
        async for _ in await llm.astream_chat(HELLO):
            await asyncio.sleep(0)

    with capture(path):
        await asyncio.gather(*(sample() for _ in range(10)))
        llm.chat(HELLO)
    assert answers(path) == [SONG] * 11


class RoutingLLM(CustomLLM):
    """Passes every call on to another LLM; streams from inside a generator."""

    inner: EchoLLM

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="router", is_chat_model=True)

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return self.inner.chat(messages, **kwargs)

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        yield from self.inner.stream_chat(messages, **kwargs)

    @llm_completion_callback()
    def complete(self, prompt: str, **kwargs: Any) -> CompletionResponse:
        return self.inner.complete(prompt, **kwargs)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, **kwargs: Any) -> Any:
        yield from self.inner.stream_complete(prompt, **kwargs)


async def test_an_llm_inside_another_is_one_call(path: Path) -> None:
    llm = RoutingLLM(inner=EchoLLM())
    with capture(path):
        llm.chat(HELLO)
        list(llm.stream_chat(HELLO))
        llm.complete("x")
        list(llm.stream_complete("x"))
        async for _ in await llm.astream_chat(HELLO):
            pass
    assert [example.model for example in read_examples(path)] == ["router"] * 5


def test_the_hosts_messages_may_change_while_it_waits(path: Path) -> None:
    class GreedyLLM(EchoLLM):
        @llm_chat_callback()
        def chat(self, messages: Sequence[ChatMessage], **_: Any) -> ChatResponse:
            messages[0].blocks[0].text = "changed"
            return ChatResponse(message=ChatMessage(role="assistant", content=self.reply))

    with capture(path):
        GreedyLLM().chat([ChatMessage(role="user", content="as sent")])
    (example,) = read_examples(path)
    assert example.messages[0].content == "as sent"


class EchoChatLLM(EchoLLM):
    """Takes messages of every role."""

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **_: Any) -> ChatResponse:
        return ChatResponse(message=ChatMessage(role="assistant", content=self.reply))


TURNS = st.lists(st.tuples(st.sampled_from(MessageRole), st.text()), min_size=1, max_size=5)


@given(TURNS, st.text(min_size=1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_messages_of_every_role_are_read_back_as_sent(
    path: Path, turns: list[tuple[MessageRole, str]], reply: str
) -> None:
    path.unlink(missing_ok=True)
    with capture(path) as captured:
        EchoChatLLM(reply=reply).chat([ChatMessage(role=role, content=text) for role, text in turns])
    assert captured.summary()["captured"] == 1
    (example,) = read_examples(path)
    assert [message.content for message in example.messages] == [text for _, text in turns]
    assert (example.answer_text(), example.model) == (reply, "echo")


def test_a_model_name_that_is_no_string_is_left_out(path: Path) -> None:
    class OddLLM(EchoChatLLM):
        def to_payload(self) -> dict[str, Any]:
            return {"model_name": 7}

    with capture(path):
        OddLLM().chat(HELLO)
    (example,) = read_examples(path)
    assert (example.answer_text(), example.model) == (SONG, None)


def test_the_hosts_objects_are_unchanged(path: Path, server: OpenAIServer) -> None:
    server.reply = lambda _: tool_message("song_of_year", '{"title": "Echoes", "year": 1971}')
    tool = FunctionTool.from_defaults(fn=lambda title, year: f"{title} {year}", name="song_of_year")
    messages = [ChatMessage(role="user", content="A song?")]
    with capture(path):
        response = server.llm("gpt-4").chat_with_tools([tool], chat_history=messages)
    assert messages == [ChatMessage(role="user", content="A song?")]
    plain = server.llm("gpt-4").chat_with_tools([tool], chat_history=messages)
    assert response.message == plain.message


def test_a_stream_started_before_the_block_is_not_saved(path: Path) -> None:
    llm = EchoLLM()
    stream = llm.stream_complete("started before the block")
    with capture(path) as captured:
        list(stream)
    assert captured.summary() == {
        "captured": 0,
        "rejected": {},
        "dropped_by_redaction": 0,
        "internal_errors": 0,
        "outside": 0,
    }


def test_an_llm_called_by_a_tool_is_a_call_of_its_own(path: Path, server: OpenAIServer) -> None:
    writer = EchoLLM(reply="A song from the tool.")

    def song_of_year(title: str, year: int) -> str:
        """The song of a year."""
        return str(writer.chat([ChatMessage(role="user", content=f"{title} {year}")]).message.content)

    with capture(path) as captured:
        server.llm("gpt-4").predict_and_call([FunctionTool.from_defaults(fn=song_of_year)], "A song?")
    assert answers(path) == [SONG, "A song from the tool."]
    assert captured.summary()["rejected"] == {}
