"""The conversation in a captured row is the one that was sent: blocks, calls and images of earlier turns."""

from __future__ import annotations

from pathlib import Path

import pytest
from llama_index.core.base.llms.types import (
    CacheControl,
    CachePoint,
    ChatMessage,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from llama_index_finetune_structured.capture import capture, read_examples
from llama_index_finetune_structured.formats.wire import message_from_wire
from tests.capture.fakes import EchoLLM, OpenAIServer, tool_message

PNG = b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
CALLS = [ToolCallBlock(tool_call_id=f"c{n}", tool_name="look_up", tool_kwargs={"page": n}) for n in (1, 2)]
RESULTS = [
    ChatMessage(role="tool", content=f"page {n}", additional_kwargs={"tool_call_id": f"c{n}"}) for n in (1, 2)
]
CONVERSATIONS = {
    "thinking": [
        ChatMessage(
            role="assistant", blocks=[ThinkingBlock(content="Let me see."), TextBlock(text="Meddle.")]
        ),
        ChatMessage(content="And when?"),
    ],
    "parallel calls": [
        ChatMessage(content="Look them up."),
        ChatMessage(role="assistant", blocks=CALLS),
        *RESULTS,
    ],
    "a call with text": [
        ChatMessage(role="assistant", blocks=[TextBlock(text="One moment."), CALLS[0]]),
        RESULTS[0],
    ],
    "several texts": [ChatMessage(blocks=[TextBlock(text="one "), TextBlock(text="two")])],
    "an image": [
        ChatMessage(blocks=[TextBlock(text="See"), ImageBlock(image=PNG, image_mimetype="image/png")])
    ],
    "an address of an image": [
        ChatMessage(blocks=[ImageBlock(url="http://127.0.0.1/x.png", detail="low"), TextBlock(text="Who?")])
    ],
}


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=list(CONVERSATIONS))
def test_the_captured_conversation_is_the_one_that_was_sent(
    messages: list[ChatMessage], path: Path, server: OpenAIServer
) -> None:
    with capture(path):
        server.llm().chat(messages)
    (example,) = read_examples(path)
    assert [message.wire() for message in example.messages] == server.requests[0]["messages"]


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=list(CONVERSATIONS))
def test_a_captured_conversation_asked_again_is_captured_alike(
    messages: list[ChatMessage], path: Path, server: OpenAIServer
) -> None:
    with capture(path):
        server.llm().chat(messages)
        (first,) = read_examples(path)
        server.llm().chat([message_from_wire(message.wire(reasoning=True)) for message in first.messages])
    _, second = read_examples(path)
    assert second.messages == first.messages


def test_a_cache_point_is_no_content(path: Path) -> None:
    point = CachePoint(cache_control=CacheControl(type="ephemeral"))
    system = ChatMessage(role="system", blocks=[TextBlock(text="Be short."), point])
    with capture(path):
        EchoLLM().chat([system, ChatMessage(content="Which song?")])
    (example,) = read_examples(path)
    read = [message_from_wire(message.wire()) for message in example.messages]
    assert [message.content for message in read] == ["Be short.", "Which song?"]


def test_parallel_calls_of_an_answer_are_all_recorded(path: Path, server: OpenAIServer) -> None:
    answer = tool_message("look_up", '{"page": 1}', '{"page": 2}')
    server.reply = lambda _: answer
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
    with capture(path):
        server.llm("gpt-4").chat([ChatMessage(content="Look them up.")], tools=[tool])
    (example,) = read_examples(path)
    assert example.answer.tool_calls == answer["tool_calls"]
