"""A teacher that calls tools by rules, and the agent's small world: sums, and songs by name."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LLMMetadata,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.llms.callbacks import llm_chat_callback
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from llama_index_finetune_structured.llms.tool_calls import ToolCallingLLM

SONGS = {"Meddle": 371, "Echoes": 1411, "Fearless": 368}


def add(first: int, second: int) -> int:
    """The sum of two numbers.

    Args:
        first: A number.
        second: Another number.
    """
    return first + second


def seconds_of(song: str) -> int:
    """The length of a song in seconds."""
    if song not in SONGS:
        raise ValueError(f"no song {song!r}; there are {', '.join(SONGS)}")
    return SONGS[song]


TOOLS = [FunctionTool.from_defaults(add), FunctionTool.from_defaults(seconds_of)]
WIRE = [tool.metadata.to_openai_tool() for tool in TOOLS]


class Length(BaseModel):
    """The length of a song."""

    song: str
    seconds: int


class Teacher(ToolCallingLLM):
    """Answers ``add A and B``, ``how long is X``, ``how long are X and Y`` (parallel calls) and greetings.

    It hands over to the agent ``Songs`` where it has no tool for songs, calls an agent that is a tool, fills the one
    tool of a class, and follows the text form of a ``ReActAgent``.
    """

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(is_chat_model=True, is_function_calling_model=True, model_name="rules")

    def answer(self, messages: Sequence[ChatMessage], tools: Sequence[Any] | None = None) -> ChatMessage:
        names = {tool["function"]["name"] for tool in tools or ()}
        if names == {"Length"}:
            found = re.findall(r"how long is (\w+)|(\d+) seconds", str(messages[-1].content))
            song, seconds = found[0][0], found[-1][1]
            return _calls([("Length", {"song": song, "seconds": int(seconds)})])
        if not names:
            return self._react(messages)
        last = max(n for n, message in enumerate(messages) if message.role == MessageRole.USER)
        question = messages[last].content or ""
        results = [message for message in messages[last:] if message.role == "tool"]
        results = [message for message in results if "now handling" not in (message.content or "")]
        if sums := re.search(r"add (\d+) and (\d+)", question, re.I):
            if not results:
                return _calls([("add", {"first": int(sums[1]), "second": int(sums[2])})])
            return ChatMessage(role="assistant", content=f"The sum is {results[-1].content}.")
        if songs := re.search(r"how long (?:is|are) (\w+)(?: and (\w+))?", question, re.I):
            wanted = [name for name in songs.groups() if name]
            if "handoff" in names and "seconds_of" not in names:
                return _calls([("handoff", {"to_agent": "Songs", "reason": "It is about a song."})])
            if "ask_songs" in names:
                if results:
                    return ChatMessage(role="assistant", content=f"They say: {results[-1].content}")
                return _calls([("ask_songs", {"question": question})])
            if not results:
                return _calls([("seconds_of", {"song": name}) for name in wanted], "Let me look.")
            if "no song" in (results[-1].content or "") and len(results) == 1:
                return _calls([("seconds_of", {"song": "Meddle"})])
            said = " and ".join(f"{result.content} seconds" for result in results)
            return ChatMessage(role="assistant", content=f"{said}.")
        return ChatMessage(role="assistant", content="Hello!")

    def _react(self, messages: Sequence[ChatMessage]) -> ChatMessage:
        questions = [m.content or "" for m in messages if m.role == MessageRole.USER]
        observed = re.search(r"Observation: (\d+)", questions[-1])
        if observed:
            text = f"Thought: I can answer without using any more tools.\nAnswer: {observed[1]} seconds."
        else:
            song = questions[-1].split()[-1]
            text = f'Thought: I need a tool.\nAction: seconds_of\nAction Input: {{"song": "{song}"}}'
        return ChatMessage(role="assistant", content=text)

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return ChatResponse(message=self.answer(messages, kwargs.get("tools")))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return ChatResponse(message=self.answer(messages, kwargs.get("tools")))

    @llm_chat_callback()
    def stream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> Generator[ChatResponse, None, None]:
        return (
            response
            for response in [ChatResponse(message=self.answer(messages, kwargs.get("tools")), delta="")]
        )

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> AsyncGenerator[ChatResponse, None]:
        async def responses() -> AsyncGenerator[ChatResponse, None]:
            yield ChatResponse(message=self.answer(messages, kwargs.get("tools")), delta="")

        return responses()

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        raise NotImplementedError

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        raise NotImplementedError

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        raise NotImplementedError

    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        raise NotImplementedError


def _calls(calls: Sequence[tuple[str, dict[str, Any]]], text: str = "") -> ChatMessage:
    blocks: list[Any] = [TextBlock(text=text)] if text else []
    blocks += [
        ToolCallBlock(tool_call_id=f"id-{number}-{name}", tool_name=name, tool_kwargs=arguments)
        for number, (name, arguments) in enumerate(calls)
    ]
    return ChatMessage(role="assistant", blocks=blocks)
