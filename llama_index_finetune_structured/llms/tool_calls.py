"""Tool calls of a local model: a call with tools as a structured one, and its answer as text and calls."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    ContentBlock,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools import BaseTool
from pydantic_core import from_json

from ..errors import ConfigurationError
from ..example import loads
from ..formats.wire import message_from_wire, message_to_wire, tools_to_wire
from ..json_schema import without_titles
from ..local.schema.tool_turns import chosen_schema, tool_schema, turn_messages, turn_schema
from .local_calls import as_chat, plain_message, thinking_blocks

__all__ = ["ChatForm", "ToolCallingLLM", "chat_form"]

_KEYWORDS = ("tools", "tool_choice", "parallel_tool_calls")


class ToolCallingLLM(FunctionCallingLLM):
    """What LlamaIndex asks of an LLM that calls tools, in terms of ``chat`` with ``tools`` in OpenAI's form."""

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The keywords of ``chat``."""
        messages = list(chat_history or [])
        if user_msg is not None:
            asked = ChatMessage(content=user_msg) if isinstance(user_msg, str) else user_msg
            messages.append(asked)
        return {
            **kwargs,
            "messages": messages,
            "tools": [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools],
            "tool_choice": tool_choice or ("required" if tool_required else "auto"),
            "parallel_tool_calls": allow_parallel_tool_calls,
        }

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The tool calls of a response.

        Args:
            response: A response of this LLM.
            error_on_no_tool_call: Whether to raise ValueError where there is none.
            **kwargs: Not used.
        """
        calls = [
            ToolSelection(
                tool_id=block.tool_call_id or "", tool_name=block.tool_name, tool_kwargs=block.tool_kwargs
            )
            for block in response.message.blocks
            if isinstance(block, ToolCallBlock)
        ]
        if error_on_no_tool_call and not calls:
            raise ValueError(f"expected a tool call, found the text {response.message.content!r}")
        return calls


def chat_form(
    messages: Sequence[ChatMessage], keywords: Mapping[str, Any], trained: Sequence[Mapping[str, Any]]
) -> ChatForm:
    """How a chat is asked of the model, and how its answer is read: with tools, as a structured call.

    ``trained``: the schemas of the training rows, without titles. Raises ConfigurationError for what is no tool, an
    unknown choice, and a response format beside tools.
    """
    rest = {name: value for name, value in keywords.items() if name not in _KEYWORDS}
    tools, choice = _tools(keywords.get("tools")), _choice(keywords.get("tool_choice"))
    if not tools:
        if choice not in ("auto", "none"):
            raise ConfigurationError(f"tool_choice={choice!r}: there are no tools, pass tools= as well")
        return ChatForm(messages, rest)
    if rest.get("response_format") is not None:
        raise ConfigurationError(
            "tools and response_format: an answer is calls of tools or an object of one schema; pass one of them"
        )
    schema = turn_schema(tools)
    parallel = keywords.get("parallel_tool_calls") is not False
    if not parallel and without_titles(schema) not in trained:
        arguments = _only_answer(tools, choice, trained)
        if arguments is not None:
            name = str(tools[0]["function"]["name"])
            return ToolCalls(messages, {**rest, "response_format": _format(name, arguments)}, name)
    plain = turn_messages([plain_message(number, message) for number, message in enumerate(messages)])
    asked = {
        "response_format": _format("turn", schema),
        "grammar_schema": chosen_schema(schema, choice, parallel),
    }
    return ToolCalls([message_from_wire(message.wire()) for message in plain], {**rest, **asked})


@dataclass(frozen=True)
class ChatForm:
    """A chat as it is asked of the model: its messages and keywords; its answer is plain text."""

    messages: Sequence[ChatMessage]
    keywords: dict[str, Any]

    def response(self, completion: CompletionResponse) -> ChatResponse:
        """The chat response of a completed answer."""
        return as_chat(completion)

    def responses(self, chunks: Iterable[CompletionResponse]) -> ChatResponseGen:
        """The answer as it grows."""
        return (as_chat(chunk) for chunk in chunks)

    async def aresponses(self, chunks: AsyncIterable[CompletionResponse]) -> ChatResponseAsyncGen:
        """The answer as it grows."""
        async for chunk in chunks:
            yield as_chat(chunk)


@dataclass(frozen=True)
class ToolCalls(ChatForm):
    """A chat with tools. ``tool``: the one whose arguments the answer is; None: the answer is a turn."""

    tool: str | None = None
    key: str = field(default_factory=lambda: uuid.uuid4().hex)  # the ids of calls begin with it

    def response(self, completion: CompletionResponse) -> ChatResponse:
        """The chat response with the texts and calls of a completed answer, or its text where it is no turn."""
        try:
            return self._response(completion, loads(completion.text))
        except ValueError:
            return as_chat(completion)

    def responses(self, chunks: Iterable[CompletionResponse]) -> ChatResponseGen:
        """The answer as it grows: ``delta`` is of its text, calls are as far as they go."""
        said = ""
        for chunk in chunks:
            response = self._partial(chunk, said)
            said = response.message.content or ""
            yield response

    async def aresponses(self, chunks: AsyncIterable[CompletionResponse]) -> ChatResponseAsyncGen:
        """As ``responses``."""
        said = ""
        async for chunk in chunks:
            response = self._partial(chunk, said)
            said = response.message.content or ""
            yield response

    def _partial(self, chunk: CompletionResponse, said: str) -> ChatResponse:
        if chunk.raw is not None:  # the last one
            response = self.response(chunk)
        else:
            try:
                value = from_json(chunk.text, allow_partial="trailing-strings")
            except ValueError:  # no value yet
                value = [said]
            response = self._response(chunk, value)
        response.delta = (response.message.content or "")[len(said) :]
        return response

    def _response(self, completion: CompletionResponse, value: Any) -> ChatResponse:
        parts = [{self.tool: value}] if self.tool else value if isinstance(value, list) else [completion.text]
        text = "".join(part for part in parts if isinstance(part, str))
        blocks: list[ContentBlock] = thinking_blocks(completion)
        blocks += [TextBlock(text=text)] if text else []
        calls = [call for part in parts if isinstance(part, dict) for call in part.items()]
        blocks += [
            ToolCallBlock(tool_call_id=f"call_{self.key}_{number}", tool_name=name, tool_kwargs=arguments)
            for number, (name, arguments) in enumerate(calls)
            if isinstance(arguments, dict)
        ]
        message = ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks)
        if wired := message_to_wire(message).get("tool_calls"):
            message.additional_kwargs = {"tool_calls": wired}  # where LlamaIndex's programs look for them
        response = as_chat(completion)
        response.message = message
        return response


def _tools(tools: Any) -> list[dict[str, Any]]:
    if not tools:
        return []
    wire = tools_to_wire(
        [
            tool.metadata.to_openai_tool(skip_length_check=True) if isinstance(tool, BaseTool) else tool
            for tool in tools
        ]
        if isinstance(tools, Sequence) and not isinstance(tools, str)
        else tools
    )
    if not wire:
        raise ConfigurationError(f"tools: expected a list of tools in OpenAI's form, found {tools!r}")
    return wire


def _choice(choice: Any) -> str:
    """A tool choice of LlamaIndex or OpenAI as one word."""
    if isinstance(choice, Mapping):
        function = choice.get("function")
        choice = function.get("name") if isinstance(function, Mapping) else choice.get("type")
    if choice is None:
        return "auto"
    if not isinstance(choice, str) or not choice:
        raise ConfigurationError(
            f"tool_choice={choice!r}: expected auto, required, none, a tool's name, or "
            "{'type': 'function', 'function': {'name': ...}}"
        )
    return "required" if choice == "any" else choice


def _only_answer(
    tools: Sequence[Mapping[str, Any]], choice: str, trained: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any] | None:
    """The schema of the arguments, where the call of the one tool, which is a class's, is all of the answer.

    So ``FunctionCallingProgram`` asks with the same prompt as ``structured_predict``.
    """
    if len(tools) > 1 or choice == "none":
        return None
    parameters = tools[0]["function"].get("parameters") or {"type": "object", "properties": {}}
    known = next((schema for schema in trained if tool_schema(schema) == tool_schema(parameters)), None)
    return known if known is not None else parameters if choice != "auto" else None


def _format(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}
