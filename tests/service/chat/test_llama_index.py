"""LlamaIndex's ``OpenAILike`` against the service; reasoning of models that write it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import SummaryIndex
from llama_index.core.base.llms.types import ChatMessage, ThinkingBlock
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.schema import TextNode
from llama_index.llms.openai_like import OpenAILike  # type: ignore[import-untyped]

from llama_index_finetune_structured import LoraLLM
from llama_index_finetune_structured.service.call_queue import CallQueue
from llama_index_finetune_structured.service.pool import ModelPool
from tests.exporting import Colour
from tests.llms import thinking_bases
from tests.service.chat.chat_server import ChatServer


def like(server: ChatServer, model: str, **options: Any) -> OpenAILike:
    chat = {
        "is_chat_model": True,
        "is_function_calling_model": True,
        "context_window": 4096,
        "max_retries": 0,
    }
    return OpenAILike(model=model, api_base=server.url, api_key="none", **{**chat, "timeout": 60, **options})


@pytest.mark.parametrize("tools", [True, False], ids=["tools", "structured outputs"])
def test_a_query_engine_gives_objects(tools: bool, chat_server: ChatServer) -> None:
    options = {} if tools else {"should_use_structured_outputs": True}
    llm = like(chat_server, "colours", **options)
    engine = SummaryIndex([TextNode(text="Red is warm.")]).as_query_engine(llm=llm, output_cls=Colour)
    assert isinstance(engine.query("Is red warm?").response, Colour)
    assert isinstance(asyncio.run(engine.aquery("Is red warm?")).response, Colour)


def test_a_program_asks_with_the_trained_prompt(chat_server: ChatServer, colours: LoraLLM) -> None:
    def ask(llm: Any) -> Any:
        program = FunctionCallingProgram.from_defaults(
            Colour, prompt_template_str="Describe colour 1.", llm=llm, tool_required=True
        )
        return program()

    assert ask(like(chat_server, "colours", temperature=0)) == ask(colours)


def test_texts_stream(chat_server: ChatServer, tiny: LoraLLM) -> None:
    messages = [ChatMessage(role="user", content="Describe colour 1.")]
    chunks = list(like(chat_server, "tiny", max_tokens=20, temperature=0).stream_chat(messages))
    assert chunks[-1].message.content == tiny.chat(messages, max_tokens=20).message.content


def test_reasoning_stands_beside_the_answer(tmp_path: Path) -> None:
    base = thinking_bases.save("switch", tmp_path / "base")
    server = ChatServer(tmp_path / "service", {"thinking": base})
    options = {"thinking": True, "thinking_tokens": 12, "max_new_tokens": 12}
    server.app.state.pool = ModelPool(options=options)
    server.app.state.calls = CallQueue(server.app.state.pool)
    own = LoraLLM(base_model=str(base), **options).chat([ChatMessage(role="user", content="Why?")])
    thought = next(block.content for block in own.message.blocks if isinstance(block, ThinkingBlock))
    asked: Any = {"model": "thinking", "messages": [{"role": "user", "content": "Why?"}]}
    with server.running(), server.client() as client:
        reply = client.chat.completions.create(**asked)
        message: Any = reply.choices[0].message
        assert (message.reasoning_content, message.content) == (thought, own.message.content)
        assert reply.usage is not None
        assert reply.usage.completion_tokens_details is not None
        assert reply.usage.completion_tokens_details.reasoning_tokens
        deltas: list[Any] = [
            chunk.choices[0].delta for chunk in client.chat.completions.create(stream=True, **asked)
        ]
        assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == thought
        assert "".join(delta.content or "" for delta in deltas) == own.message.content
        none: Any = client.chat.completions.create(reasoning_effort="none", **asked).choices[0].message
        assert not hasattr(none, "reasoning_content")
        client.chat.completions.create(reasoning_effort="low", **asked)
        block = (
            like(server, "thinking", temperature=0)
            .chat([ChatMessage(role="user", content="Why?")])
            .message.blocks[0]
        )
        assert isinstance(block, ThinkingBlock)
        assert block.content == thought
