"""Agents of LlamaIndex with LLMs that answer by a script, shared by the tests of agents."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    LLMMetadata,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.llms.callbacks import llm_chat_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from pydantic import Field, PrivateAttr

from llama_index_finetune_structured import AgentRun, AgentScorecard, compare_agents, run_agent

Call = tuple[str, dict[str, Any]]
Turn = str | list[Call | str] | Exception
"""Text, texts and calls of one turn, or an error to raise."""


def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    if a == 13:
        raise ValueError("thirteen is not supported")
    return a + b


def search(query: str, limit: int | None = None) -> str:
    """Search for a text."""
    return f"found {query}"


class ScriptedCaller(FunctionCallingLLM):
    """Answers with the turns of the question that the messages hold; the last turn is repeated."""

    script: dict[str, list[Any]]
    name: str = "scripted"
    wait_s: float = 0.0
    usage: dict[str, Any] = Field(default_factory=lambda: {"prompt_tokens": 10, "completion_tokens": 2})
    _running: int = PrivateAttr(default=0)
    _most_running: int = PrivateAttr(default=0)
    _asked: list[dict[str, Any]] = PrivateAttr(default_factory=list)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(is_chat_model=True, is_function_calling_model=True, model_name=self.name)

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The options of every call, with its messages."""
        return self._asked

    @property
    def most_running(self) -> int:
        return self._most_running

    def _prepare_chat_with_tools(self, tools: Any, *_: Any, **kwargs: Any) -> dict[str, Any]:
        return {
            "messages": list(kwargs["chat_history"]),
            "tools": [t.metadata.to_openai_tool() for t in tools],
        }

    async def _reply(self, messages: Sequence[ChatMessage], options: dict[str, Any]) -> ChatResponse:
        self._asked.append(options | {"messages": list(messages)})
        self._running += 1
        self._most_running = max(self._most_running, self._running)
        try:
            await asyncio.sleep(self.wait_s)
        finally:
            self._running -= 1
        last = max(at for at, m in enumerate(messages) if (m.content or "") in self.script)
        turns = self.script[messages[last].content or ""]
        turn = turns[min(sum(m.role == "assistant" for m in messages[last:]), len(turns) - 1)]
        if isinstance(turn, Exception):
            raise turn
        message = ChatMessage(role="assistant", blocks=_blocks(turn))
        return ChatResponse(message=message, raw={"usage": self.usage} if self.usage else {})

    @llm_chat_callback()
    async def achat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        return await self._reply(messages, kwargs)

    @llm_chat_callback()
    async def astream_chat(self, messages: Any, **kwargs: Any) -> ChatResponseAsyncGen:
        async def parts() -> ChatResponseAsyncGen:
            yield await self._reply(messages, kwargs)

        return parts()

    def get_tool_calls_from_response(self, response: ChatResponse, *_: Any, **__: Any) -> list[ToolSelection]:
        blocks: list[Any] = [b for b in response.message.blocks if isinstance(b, ToolCallBlock)]
        return [
            ToolSelection(tool_id=b.tool_call_id, tool_name=b.tool_name, tool_kwargs=dict(b.tool_kwargs))
            for b in blocks
        ]

    def chat(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def stream_chat(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def complete(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def stream_complete(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    async def acomplete(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    async def astream_complete(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


def _blocks(turn: str | list[Call | str]) -> list[Any]:
    return [
        TextBlock(text=part)
        if isinstance(part, str)
        else ToolCallBlock(
            tool_call_id=f"call-{at}-{json.dumps(part[1])}", tool_name=part[0], tool_kwargs=part[1]
        )
        for at, part in enumerate([turn] if isinstance(turn, str) else turn)
    ]


def agent(script: dict[str, list[Turn]], **options: Any) -> FunctionAgent:
    kept = {name: options.pop(name) for name in ("wait_s", "usage", "name") if name in options}
    return FunctionAgent(tools=[add, search], llm=ScriptedCaller(script=script, **kept), **options)


def gold_of(script: dict[str, list[Turn]]) -> list[AgentRun]:
    return run_agent(agent(script), script, show_progress=False)


def quiet(*args: Any, **kwargs: Any) -> AgentScorecard:
    return compare_agents(*args, show_progress=False, **kwargs)


def rates(card: AgentScorecard, name: str = "tuned") -> dict[str, float]:
    return {measure: interval.rate for measure, interval in card.systems[name].rates.items()}
