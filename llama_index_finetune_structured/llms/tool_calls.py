"""Tool calls of a local model: a call with tools as a structured one, and its answer as text and calls."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing, closing, suppress
from dataclasses import dataclass, field
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    ContentBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools import BaseTool
from pydantic_core import from_json

from ..errors import ConfigurationError, DatasetError
from ..example import loads
from ..formats.wire import message_from_wire, message_to_wire, schema_format, tools_to_wire
from ..json_schema import without_titles
from ..local.schema.tool_turns import chosen_schema, tool_schema, turn_messages, turn_schema
from .local_calls import plain_message

__all__ = ["ChatForm", "ToolCallingLLM", "ToolCalls", "chat_form"]

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
        tool_choice: Any = "auto",
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The keywords of ``chat``.

        ``tool_choice`` is None from LlamaIndex's programs alone, which do not force their one tool when they stream.
        """
        is_program = tool_choice is None and len(tools) == 1 and not allow_parallel_tool_calls
        free = "required" if tool_required or is_program else "auto"
        messages = list(chat_history or [])
        if user_msg is not None:
            asked = ChatMessage(content=user_msg) if isinstance(user_msg, str) else user_msg
            messages.append(asked)
        return {
            **kwargs,
            "messages": messages,
            "tools": [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools],
            "tool_choice": free if tool_choice in (None, "auto") else tool_choice,
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
    tools, (choice, allowed) = _tools(keywords.get("tools")), _choice(keywords.get("tool_choice"))
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
            return ToolCalls(messages, {**rest, "response_format": schema_format(name, arguments)}, name)
    try:
        plain = turn_messages([plain_message(number, message) for number, message in enumerate(messages)])
    except DatasetError as error:
        raise ConfigurationError(f"messages: {error}") from error
    asked = {
        "response_format": schema_format("turn", schema),
        "grammar_schema": chosen_schema(schema, choice, parallel, allowed),
    }
    return ToolCalls([message_from_wire(message.wire()) for message in plain], {**rest, **asked})


@dataclass(frozen=True)
class ChatForm:
    """A chat as it is asked of the model: its messages and keywords; its answer is plain text."""

    messages: Sequence[ChatMessage]
    keywords: dict[str, Any]

    def response(self, answered: ChatResponse) -> ChatResponse:
        """The response to a chat whose answer, as text, is ``answered``."""
        return answered

    def responses(self, chunks: ChatResponseGen) -> ChatResponseGen:
        """The responses of a stream."""
        return chunks

    def aresponses(self, chunks: ChatResponseAsyncGen) -> ChatResponseAsyncGen:
        """The responses of a stream."""
        return chunks


@dataclass(frozen=True)
class ToolCalls(ChatForm):
    """A chat with tools. ``tool``: the one whose arguments the answer is; None: the answer is a turn."""

    tool: str | None = None
    key: str = field(default_factory=lambda: uuid.uuid4().hex)  # the ids of calls begin with it

    def response(self, answered: ChatResponse) -> ChatResponse:
        """The response with the texts and calls of an answer, or its text where it is no turn."""
        with suppress(ValueError):
            answered.message = self._message(loads(answered.message.content or ""), _thinking(answered))
        return answered

    def responses(self, chunks: ChatResponseGen) -> ChatResponseGen:
        """The responses of a stream: ``delta`` is of the turn's text, calls are as far as they go."""
        growing = _GrowingTurn(self)
        with closing(chunks):
            for chunk in chunks:
                yield growing.response(chunk)
        yield from growing.rest()

    async def aresponses(self, chunks: ChatResponseAsyncGen) -> ChatResponseAsyncGen:
        """As ``responses``."""
        growing = _GrowingTurn(self)
        async with aclosing(chunks):
            async for chunk in chunks:
                yield growing.response(chunk)
        for last in growing.rest():
            yield last

    def _message(self, value: Any, thinking: Sequence[ContentBlock]) -> ChatMessage:
        """The message of an answer, after its reasoning. Raises ValueError where it is no turn."""
        parts = [{self.tool: value}] if self.tool else value
        if not isinstance(parts, list):
            raise ValueError("the answer is no turn")
        text = "".join(part for part in parts if isinstance(part, str))
        blocks: list[ContentBlock] = list(thinking)
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
        return message


class _GrowingTurn:
    """A stream's turn, read from its JSON as far as that goes."""

    def __init__(self, calls: ToolCalls) -> None:
        self._calls, self._said = calls, ""
        self._message = ChatMessage(role=MessageRole.ASSISTANT, blocks=[])
        self._unread: ChatResponse | None = None

    def response(self, chunk: ChatResponse) -> ChatResponse:
        self._unread = None
        try:
            value = from_json(chunk.message.content or "", allow_partial="trailing-strings")
            self._message = self._calls._message(value, _thinking(chunk))
        except ValueError:  # no value yet, or none at all
            self._unread = chunk.model_copy()
            turn = [block for block in self._message.blocks if not isinstance(block, ThinkingBlock)]
            self._message = self._message.model_copy(update={"blocks": [*_thinking(chunk), *turn]})
        return self._with_delta(chunk, self._message)

    def rest(self) -> Iterator[ChatResponse]:
        """The answer as it is, where it was no turn."""
        if self._unread is not None:
            yield self._with_delta(self._unread, self._unread.message)

    def _with_delta(self, response: ChatResponse, message: ChatMessage) -> ChatResponse:
        text = message.content or ""
        response.message, response.delta = message, text[len(self._said) :]
        self._said = text
        return response


def _thinking(response: ChatResponse) -> list[ContentBlock]:
    return [block for block in response.message.blocks if isinstance(block, ThinkingBlock)]


def _tools(tools: Any) -> list[dict[str, Any]]:
    if not tools:
        return []
    given = tools if isinstance(tools, Sequence) and not isinstance(tools, str) else [tools]
    made = [
        tool.metadata.to_openai_tool(skip_length_check=True) if isinstance(tool, BaseTool) else tool
        for tool in given
    ]
    if other := [tool for tool in made if not isinstance(tool, Mapping)]:
        raise ConfigurationError(
            f"tools: expected a list of tools, LlamaIndex's or in OpenAI's form, found {other[0]!r} in it; make a tool "
            "of a function by FunctionTool.from_defaults(function)"
        )
    return tools_to_wire([dict(tool) for tool in made])


def _choice(choice: Any) -> tuple[str, list[str] | None]:
    """A tool choice of LlamaIndex or OpenAI as one word, and the tools that it allows; None: all."""
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        return _allowed_tools(choice.get("allowed_tools"))
    if isinstance(choice, Mapping):
        function = choice.get("function")
        choice = function.get("name") if isinstance(function, Mapping) else choice.get("type")
    if choice is None:
        return "auto", None
    if not isinstance(choice, str) or not choice:
        raise ConfigurationError(
            f"tool_choice={choice!r}: expected auto, required, none, a tool's name, or "
            "{'type': 'function', 'function': {'name': ...}}"
        )
    return "required" if choice == "any" else choice, None


def _allowed_tools(allowed: Any) -> tuple[str, list[str]]:
    try:
        mode, names = str(allowed["mode"]), [str(tool["function"]["name"]) for tool in allowed["tools"]]
    except (KeyError, TypeError):
        mode, names = "", []
    if mode not in ("auto", "required") or not names:
        raise ConfigurationError(
            f"tool_choice: allowed_tools is {allowed!r}, expected {{'mode': 'auto' or 'required', 'tools': "
            "[{'type': 'function', 'function': {'name': ...}}]}"
        )
    return mode, names


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
