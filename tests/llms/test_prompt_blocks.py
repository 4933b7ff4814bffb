"""Messages with other blocks than text: the prompt of a call is that of a training row with the same messages."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    AudioBlock,
    CacheControl,
    CachePoint,
    ChatMessage,
    ChatResponse,
    DocumentBlock,
    ImageBlock,
    LLMMetadata,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_chat_callback

from llama_index_finetune_structured import LoraLLM, capture
from llama_index_finetune_structured.capture import read_examples
from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.local.model.prompts import token_row

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}
CONVERSATIONS: dict[str, list[ChatMessage]] = {
    "thinking": [
        ChatMessage(content="Hi"),
        ChatMessage(role="assistant", blocks=[ThinkingBlock(content="hm"), TextBlock(text="Hello.")]),
        ChatMessage(content="And now?"),
    ],
    "cache point": [
        ChatMessage(
            role="system",
            blocks=[TextBlock(text="Be brief."), CachePoint(cache_control=CacheControl(type="ephemeral"))],
        ),
        ChatMessage(content="Hi"),
    ],
    "several texts": [ChatMessage(blocks=[TextBlock(text="One."), TextBlock(text=" Two.")])],
    "tool call block": [
        ChatMessage(content="Rain?"),
        ChatMessage(
            role="assistant",
            blocks=[ToolCallBlock(tool_call_id="c1", tool_name="weather", tool_kwargs={"city": "Köln"})],
        ),
        ChatMessage(role="tool", content="yes", additional_kwargs={"tool_call_id": "c1"}),
        ChatMessage(content="So?"),
    ],
    "tool call block with text": [
        ChatMessage(content="Rain?"),
        ChatMessage(
            role="assistant",
            blocks=[TextBlock(text="I look."), ToolCallBlock(tool_name="weather", tool_kwargs="{}")],
        ),
        ChatMessage(role="tool", content="yes"),
    ],
    "older tool calls": [
        ChatMessage(content="Rain?"),
        ChatMessage(role="assistant", content=None, additional_kwargs={"tool_calls": [CALL, CALL]}),
        ChatMessage(role="tool", content="yes", additional_kwargs={"tool_call_id": "c1", "name": "weather"}),
        ChatMessage(role="function", content="no", additional_kwargs={"name": "weather"}),
    ],
    "other names of roles": [
        ChatMessage(role="developer", content="Be brief."),
        ChatMessage(content="Hi"),
        ChatMessage(role="chatbot", content="Hello."),
        ChatMessage(role="model", content="Yes?"),
        ChatMessage(content="So?"),
    ],
}


class Teacher(CustomLLM):
    """Answers every chat with one word."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="teacher", is_chat_model=True)

    @llm_chat_callback()
    def chat(self, messages: Any, **_: Any) -> ChatResponse:
        return ChatResponse(message=ChatMessage(role="assistant", content="fine"))

    def complete(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def stream_complete(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


@pytest.fixture(scope="module")
def llm(tiny_llama: Path) -> LoraLLM:
    return LoraLLM(base_model=str(tiny_llama), max_new_tokens=3)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_captured_conversation_is_asked_as_it_is_trained(llm: LoraLLM, name: str, tmp_path: Path) -> None:
    messages = CONVERSATIONS[name]
    with capture(tmp_path / "calls.jsonl") as captured:
        Teacher().chat(messages)
    (example,) = read_examples(captured.path)
    row = token_row(llm._loaded.tokenizer, example, stop_id=1)
    assert llm.prompt_token_ids(messages) == list(row.prompt)
    assert llm.chat(messages).message.content


def test_thinking_and_cache_points_are_not_in_the_prompt_and_calls_are(llm: LoraLLM) -> None:
    def prompt(name: str) -> str:
        return str(llm._loaded.tokenizer.decode(llm.prompt_token_ids(CONVERSATIONS[name])))

    assert "hm" not in prompt("thinking")
    assert "ephemeral" not in prompt("cache point")
    for name in ("tool call block", "older tool calls"):
        assert "weather" in prompt(name)
        assert "K" in prompt(name)


BLOCKS = {
    "image": ImageBlock(url="http://127.0.0.1/none.png"),
    "audio": AudioBlock(url="http://127.0.0.1/none.mp3"),
    "document": DocumentBlock(url="http://127.0.0.1/none.pdf"),
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_another_block_is_an_error_that_names_it_and_its_message(llm: LoraLLM, kind: str) -> None:
    messages = [ChatMessage(content="Look"), ChatMessage(blocks=[TextBlock(text="here"), BLOCKS[kind]])]
    match = rf"message 1: block 1 of a user message is of type '{kind}', expected text and tool calls"
    with pytest.raises(ConfigurationError, match=match):
        llm.chat(messages)
    with pytest.raises(ConfigurationError, match=match):
        asyncio.run(llm.achat(messages))
    with pytest.raises(ConfigurationError, match=match):
        llm.prompt_token_ids(messages)
