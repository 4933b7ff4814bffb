"""A call with tools as a question that is put to a cascade's student and to its teacher: the answer is a turn."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ToolCallBlock
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM
from llama_index.core.tools import BaseTool

from ..errors import ConfigurationError, DatasetError, StructuredAnswerError
from ..formats.wire import message_to_wire
from ..local.schema.tool_turns import turn_messages
from .cascade_questions import CascadeQuestion, for_teacher
from .local_calls import plain_message
from .merged_calls import fits
from .structured import request_schema
from .tool_calls import ToolCalls, chat_form

__all__ = ["TurnQuestion", "turn_question"]


@dataclass(frozen=True)
class TurnQuestion(CascadeQuestion):
    """One call with tools. ``allowed``: the schema of what its tool choice allows; ``tool``: as of ``ToolCalls``."""

    allowed: Mapping[str, Any] = field(default_factory=dict)
    tool: str | None = None

    def put(self, llm: LLM, to: Literal["student", "teacher"], prefix: Literal["", "a"] = "") -> Any:
        """The answer of an LLM or, with the prefix ``a``, its coroutine."""
        if to == "student" or "messages" not in self.teacher[1]:
            return super().put(llm, to, prefix)
        keywords = {**self.teacher[1], "chat_history": [*self.teacher[1]["messages"]]}
        del keywords["messages"]
        if not isinstance(llm, FunctionCallingLLM):
            raise ConfigurationError(
                f"teacher: {type(llm).__name__} calls no tools; give the cascade a function-calling LLM as teacher"
            )
        return getattr(llm, f"{prefix}chat_with_tools")(**keywords)

    def checked(self, answer: Any) -> Any:
        """An answer that is a turn with calls of the tools. Raises StructuredAnswerError for others."""
        text = turn_text(answer)
        if text is None:
            raise StructuredAnswerError("the answer has a tool call whose arguments are no JSON object")
        value = json.loads(text)
        if self.tool is not None:
            calls = [part for part in value if isinstance(part, dict)]
            value = calls[0].get(self.tool) if len(calls) == 1 else None
        if not fits(self.allowed, value):
            raise StructuredAnswerError(
                "the answer is no turn with calls of the tools whose arguments fit them"
            )
        return _with_calls(answer)

    def written(self, answer: Any) -> str | None:
        """An answer as JSON text; None where it cannot be written."""
        return turn_text(answer)


def turn_question(
    messages: Sequence[ChatMessage], kwargs: Mapping[str, Any], trained: Sequence[Mapping[str, Any]]
) -> TurnQuestion:
    """The question of a chat with tools. ``trained``: the schemas of the student's training.

    Tools of LlamaIndex are put to the teacher in LlamaIndex's way, whose form each provider's class knows; those in
    OpenAI's form as they are. Raises ConfigurationError as ``chat_form``.
    """
    form = chat_form(messages, kwargs, trained)
    schema = request_schema(form.keywords.get("response_format"))
    if not isinstance(form, ToolCalls) or schema is None:
        raise ConfigurationError("tools: there are none")
    tools = kwargs["tools"]
    own: tuple[tuple[Any, ...], Mapping[str, Any]] = ((messages,), for_teacher(kwargs))
    if isinstance(tools, Sequence) and all(isinstance(tool, BaseTool) for tool in tools):
        own = (), {**_llama_index(kwargs), "messages": messages}
    return TurnQuestion(
        "chat",
        schema,
        ((messages,), kwargs),
        own,
        allowed=form.keywords.get("grammar_schema", schema),
        tool=form.tool,
    )


def turn_text(response: ChatResponse) -> str | None:
    """A response as the JSON text of a turn; None where its calls have no arguments."""
    try:
        turn = turn_messages([plain_message(0, response.message)])[0]
    except (ConfigurationError, DatasetError):
        return None
    return str(turn.content)


def _with_calls(response: ChatResponse) -> ChatResponse:
    """The response with its calls in blocks, arguments as objects: providers' classes have them in other places too."""
    message = response.message
    calls = [
        ToolCallBlock(
            tool_call_id=call.get("id") or f"call_{uuid.uuid4().hex}",
            tool_name=call["function"]["name"],
            tool_kwargs=json.loads(call["function"].get("arguments") or "{}"),
        )
        for call in message_to_wire(message).get("tool_calls") or ()
    ]
    blocks = [block for block in message.blocks if not isinstance(block, ToolCallBlock)]
    return response.model_copy(update={"message": message.model_copy(update={"blocks": [*blocks, *calls]})})


def _llama_index(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of ``chat_with_tools`` for those of a chat."""
    rest = for_teacher(kwargs)
    choice, parallel = rest.pop("tool_choice", "auto"), rest.pop("parallel_tool_calls", None)
    keywords = {**rest, "allow_parallel_tool_calls": parallel is not False}
    if choice in ("required", "any"):
        return {**keywords, "tool_required": True}
    return keywords if choice in (None, "auto") else {**keywords, "tool_choice": choice}
