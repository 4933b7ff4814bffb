"""Calls a system with one example; a system is a query engine, Pydantic program, LLM or plain function."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse
from llama_index.core.base.response.schema import (
    AsyncStreamingResponse,
    PydanticResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.chat_engine.types import AgentChatResponse
from llama_index.core.llms.llm import LLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.prompts import ChatPromptTemplate
from llama_index.core.types import BasePydanticProgram
from pydantic import BaseModel

from ...errors import ConfigurationError
from ...example import Example, Source, content_hash
from ...formats.wire import source_of
from .kept_trust import KeptTrust, kept_trust
from .target import AnswerTarget

__all__ = ["Reply", "System", "ask_system", "check_askable", "content_text", "fingerprint", "question_of"]

System = LLM | BaseQueryEngine | BasePydanticProgram[Any] | Callable[[Example], Any]


@dataclass(frozen=True)
class Reply:
    """A system's answer (a Pydantic object, JSON value or text), the nodes it retrieved, if it did, and its trust."""

    answer: Any
    sources: tuple[Source, ...] | None = None
    trust: KeptTrust | None = None


def ask_system(system: System, target: AnswerTarget) -> Awaitable[Reply]:
    """Call the system with one example: a query engine with its ``query``, all others with its messages."""
    example = target.example
    if isinstance(system, BaseQueryEngine):
        return _ask_query_engine(system, example)
    if isinstance(system, StructuredLLM):
        return _ask_structured_llm(system, example)
    if isinstance(system, LLM):
        return _ask_llm(system, target)
    if isinstance(system, BasePydanticProgram):
        return _ask_program(system, example)
    return _ask_function(system, example)


def check_askable(name: str, system: System, targets: Sequence[AnswerTarget]) -> None:
    """Raise ConfigurationError where this system cannot be called with these examples at all."""
    if isinstance(system, BaseQueryEngine):
        without_query = [target.example.id for target in targets if target.example.query is None]
        if without_query:
            raise ConfigurationError(
                f"system {name!r} is a query engine, which is asked example.query, but {len(without_query)} of "
                f"{len(targets)} examples have none (the first: {without_query[0][:12]}). Capture through the "
                "query engine, set `query` on the examples, or compare the bare LLM instead."
            )
    elif isinstance(system, BasePydanticProgram):
        for target in targets[:1]:
            _program_arguments(system, target.example)
    elif isinstance(system, LLM):
        if not isinstance(system, StructuredLLM) and any(
            target.output_cls is None and not target.is_text for target in targets
        ):
            raise ConfigurationError(
                f"system {name!r} is a bare LLM, which needs a schema for its answers: pass output_cls=..., "
                "or use examples that have an answer_schema."
            )
    elif not callable(system):
        raise ConfigurationError(
            f"system {name!r} is a {type(system).__name__}; expected a LlamaIndex LLM, query engine or "
            "Pydantic program, or a function of an Example."
        )


async def _ask_query_engine(engine: BaseQueryEngine, example: Example) -> Reply:
    return await _reply_of(await engine.aquery(example.query or ""))


async def _reply_of(answer: Any) -> Reply:
    """The answer within a response of LlamaIndex, with the retrieved nodes of a query engine's; else the answer."""
    if isinstance(answer, Reply):
        return answer
    if isinstance(answer, Mapping):  # the answer itself, which may have a field "trust"
        return Reply(answer)
    if isinstance(answer, AsyncStreamingResponse):
        answer = await answer.get_response()
    elif isinstance(answer, StreamingResponse):
        answer = answer.get_response()
    if isinstance(answer, Response | PydanticResponse | AgentChatResponse):
        sources = tuple(source_of(node) for node in answer.source_nodes)
        return Reply(answer.response, sources, kept_trust(answer))
    if isinstance(answer, ChatResponse):
        return Reply(answer.message.content, trust=kept_trust(answer))
    if isinstance(answer, CompletionResponse):
        return Reply(answer.text, trust=kept_trust(answer))
    return Reply(answer.content if isinstance(answer, ChatMessage) else answer, trust=kept_trust(answer))


async def _ask_structured_llm(llm: StructuredLLM, example: Example) -> Reply:
    response = await llm.achat(_chat_messages(example))
    answer = response.raw if isinstance(response.raw, BaseModel) else response.message.content
    return Reply(answer, trust=kept_trust(response))


async def _ask_llm(llm: LLM, target: AnswerTarget) -> Reply:
    messages = _chat_messages(target.example)
    if target.output_cls is None:  # only where the target is text, see check_askable
        return Reply((await llm.achat(messages)).message.content)
    prompt: Any = ChatPromptTemplate(message_templates=messages)
    return await _reply_of(await llm.astructured_predict(target.output_cls, prompt))


async def _ask_program(program: BasePydanticProgram[Any], example: Example) -> Reply:
    return await _reply_of(await program.acall(**_program_arguments(program, example)))


async def _ask_function(function: Callable[[Example], Any], example: Example) -> Reply:
    answer = function(example)
    return await _reply_of(await answer if inspect.isawaitable(answer) else answer)


def _program_arguments(program: BasePydanticProgram[Any], example: Example) -> dict[str, Any]:
    """Values of the prompt's variables: from the example's metadata, the only missing one is the question.

    Raises ConfigurationError where more than one is missing.
    """
    prompt = getattr(program, "prompt", None) or getattr(program, "_prompt", None)
    names = list(dict.fromkeys(getattr(prompt, "template_vars", None) or ()))
    missing = [name for name in names if name not in example.metadata]
    if len(missing) > 1:
        raise ConfigurationError(
            f"the program's prompt has the variables {', '.join(names)}; put {', '.join(missing)} into the "
            "examples' metadata, or wrap the program in a function of an Example."
        )
    question = question_of(example)
    return {name: example.metadata.get(name, question) for name in names}


def question_of(example: Example) -> str:
    """The user's question before retrieval, else the last user message."""
    if example.query is not None:
        return example.query
    users = [message for message in example.messages if message.role == "user"]
    return content_text((users or list(example.messages))[-1].content)


def _chat_messages(example: Example) -> list[ChatMessage]:
    """The example's messages without the schema text, which structured prediction adds itself."""
    messages = []
    for message in example.messages:
        text = content_text(message.content)
        if example.schema_text and example.schema_text in text:
            # LlamaIndex's parser joins with a blank line; other white space belongs to the prompt
            text = text.replace(example.schema_text, "").removesuffix("\n\n")
        kwargs = _tool_fields(message.wire())
        messages.append(ChatMessage(role=message.role, content=text, additional_kwargs=kwargs))
    return messages


def _tool_fields(wire: Mapping[str, Any]) -> dict[str, Any]:
    return {key: wire[key] for key in ("tool_calls", "tool_call_id", "name") if key in wire}


def content_text(content: str | list[dict[str, Any]] | None) -> str:
    """The text of a message's content."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return content or ""


def fingerprint(system: System) -> str:
    """Hash of a system's class, LLM and prompts, which tells systems of the same name apart.

    Part of the answer log's keys, so that a log is used only for the system that wrote it. Two models with the
    same ``metadata`` (``model_name``) have the same fingerprint: give them different names or cache folders.
    """
    llm = system if isinstance(system, LLM) else _llm_of(system)
    parts: dict[str, Any] = {
        "class": type(system).__name__,
        "function": getattr(system, "__qualname__", None),
    }
    if isinstance(llm, LLM):
        parts["llm"] = [llm.class_name(), llm.metadata.model_dump(mode="json")]
    if isinstance(system, BaseQueryEngine):
        prompts = system.get_prompts()
        parts["prompts"] = {key: str(prompt.get_template()) for key, prompt in prompts.items()}
    return content_hash(parts)


def _llm_of(system: Any) -> Any:
    synthesizer = getattr(system, "_response_synthesizer", None)
    return getattr(synthesizer, "_llm", None) or getattr(system, "_llm", None)
