"""The teacher of the demo's agent that needs no key: rules over the messages, as a LlamaIndex LLM with tool calls."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback

from ..llms.tool_calls import ToolCallingLLM
from .agent_questions import read_question

__all__ = ["ScriptedAgentTeacher"]

_HEAD = re.compile(r"\w+ has \d+ parameters?\n")
_NO_FUNCTION = "there is no function "
_UNKNOWN = re.compile(rf"{_NO_FUNCTION}\S+; near names: (?P<nearest>(?!none\b)\w+)")


@dataclass(frozen=True)
class _Turn:
    """What the teacher answers: a text, the calls of tools (name and arguments), or both."""

    text: str = ""
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


class ScriptedAgentTeacher(ToolCallingLLM, CustomLLM):
    """An LLM that solves the demo's questions by rules, with the demo's tools.

    It decides each turn from the messages alone: the last question and the results of the calls made for it. Raises
    ValueError for questions in other words.
    """

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(
            context_window=32_768,
            model_name="scripted-agent",
            is_chat_model=True,
            is_function_calling_model=True,
        )

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return ChatResponse(message=_answer(messages, kwargs))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        def responses() -> ChatResponseGen:
            message, said = _answer(messages, kwargs), ""
            for piece in re.findall(r"\S+\s*", message.content or ""):
                said += piece
                yield ChatResponse(message=ChatMessage(role=message.role, content=said), delta=piece)
            yield ChatResponse(message=message, delta="")

        return responses()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **_: Any) -> CompletionResponse:
        return CompletionResponse(text=_answer([ChatMessage(prompt)], {}).content or "")

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **_: Any) -> CompletionResponseGen:
        def responses() -> CompletionResponseGen:
            text = _answer([ChatMessage(prompt)], {}).content or ""
            yield CompletionResponse(text=text, delta=text)

        return responses()


def _answer(messages: Sequence[ChatMessage], settings: dict[str, Any]) -> ChatMessage:
    """The next message: the first call alone where the request allows no parallel ones."""
    question, results = _read_messages(messages)
    turn = _next_turn(question, results)
    calls = turn.calls if settings.get("parallel_tool_calls", True) else turn.calls[:1]
    before = sum(message.role == MessageRole.TOOL for message in messages)
    blocks: list[Any] = [TextBlock(text=turn.text)] if turn.text else []
    for number, (name, arguments) in enumerate(calls, start=before + 1):
        blocks.append(ToolCallBlock(tool_call_id=f"call_{number}", tool_name=name, tool_kwargs=arguments))
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks)


def _read_messages(messages: Sequence[ChatMessage]) -> tuple[str, list[str]]:
    """The last question, and the results of the calls made since, in the order of the calls."""
    asked = max((at for at, message in enumerate(messages) if message.role == MessageRole.USER), default=None)
    if asked is None:
        raise ValueError("the messages hold no question: expected one of the role 'user'")
    since = messages[asked + 1 :]
    calls = [block for message in since for block in message.blocks if isinstance(block, ToolCallBlock)]
    contents = {
        message.additional_kwargs.get("tool_call_id"): message.content or ""
        for message in since
        if message.role == MessageRole.TOOL
    }
    return messages[asked].content or "", [contents[call.tool_call_id] for call in calls]


def _next_turn(question: str, results: list[str]) -> _Turn:
    """The rules: what comes next in a question's solution after these results."""
    kind, asked = read_question(question)
    match kind, results:
        case "small talk", _:
            return _Turn("Hello! Ask me about networkx." if asked.get("greeting") else "You are welcome!")
        case "arithmetic", []:
            return _Turn(calls=[("compute", {"expression": asked["expression"]})])
        case "arithmetic", [value]:
            return _Turn(f"{asked['expression']} = {value}")
        case "search", []:
            return _Turn(calls=[("search_functions", {"query": asked["topic"], "top_k": 3})])
        case "search", [found]:
            return _Turn(f"The function is {_first_name(found)}.")
        case "search, then signature", []:
            return _Turn(calls=[("search_functions", {"query": asked["topic"], "top_k": 1})])
        case "search, then signature", [found]:
            return _read(_first_name(found))
        case "comparison", []:
            return _Turn(calls=[("compare_parameters", {"first": asked["first"], "second": asked["second"]})])
        case "comparison", [compared]:
            shared = compared.partition("\n")[0].removeprefix("shared: ")
            names = "no parameters" if shared == "none" else _listed(shared.split(", "))
            return _Turn(f"{asked['first']} and {asked['second']} share {names}.")
        case (("signature" | "default"), []):
            return _read(asked["name"])
        case (("signature" | "default"), [error]) if nearest := _UNKNOWN.match(error):
            said = f"There is no {asked['name']}; I read {nearest['nearest']}."
            return _Turn(said, _read(nearest["nearest"]).calls)
        case "default", [*_, signature] if _HEAD.match(signature):
            return _Turn(f"{asked['parameter']} is {_default(signature, asked['parameter'])} by default.")
        case (("signature" | "search, then signature"), [*_, signature]) if _HEAD.match(signature):
            return _Turn(_takes(signature))
        case _, [*_] if errors := [result for result in results if result.startswith(_NO_FUNCTION)]:
            return _Turn(f"I cannot answer: {errors[-1]}.")
        case (("two signatures" | "total"), ([] | [_])):
            return _read(*(asked["first"], asked["second"])[len(results) :])
        case "two signatures", signatures:
            return _Turn(" ".join(map(_takes, signatures)))
        case "total", [one, other]:
            return _Turn(calls=[("compute", {"expression": f"{_count(one)} + {_count(other)}"})])
        case "total", [*_, total]:
            return _Turn(f"{asked['first']} and {asked['second']} have {total} parameters together.")
    raise ValueError(f"no rule for {question!r} after {len(results)} results")


def _read(*names: str) -> _Turn:
    return _Turn(calls=[("read_signature", {"name": name}) for name in names])


def _first_name(found: str) -> str:
    return found.partition(":")[0]


def _count(signature: str) -> str:
    return signature.split()[2]


def _takes(signature: str) -> str:
    """The sentence about "NAME has N parameters", of which each has a line."""
    head, *lines = signature.splitlines()
    return f"{head.split()[0]} takes {_listed([line.partition(':')[0] for line in lines])}."


def _default(signature: str, parameter: str) -> str:
    line = next(line for line in signature.splitlines() if line.startswith(f"{parameter}: "))
    return line.rpartition(" = ")[2] if " = " in line else "required"


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
