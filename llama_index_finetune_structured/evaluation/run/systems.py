"""How each kind of system is asked one example: query engine, Pydantic program, LLM or plain function."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.llms.llm import LLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.prompts import ChatPromptTemplate
from llama_index.core.types import BasePydanticProgram
from pydantic import BaseModel

from ...errors import ConfigurationError
from ...example import Example, Source, content_hash
from ...formats.wire import source_of
from .target import Target

__all__ = ["Reply", "System", "ask", "check_askable", "fingerprint", "question_of"]

System = LLM | BaseQueryEngine | BasePydanticProgram[Any] | Callable[[Example], Any]


@dataclass(frozen=True)
class Reply:
    """What a system gave: a Pydantic object, JSON value or text, and the nodes it was given to read."""

    answer: Any
    sources: tuple[Source, ...] | None = None


def ask(system: System, example: Example, target: Target) -> Awaitable[Reply]:
    """Ask one example: a query engine its ``query``, all others its messages."""
    if isinstance(system, BaseQueryEngine):
        return _ask_query_engine(system, example)
    if isinstance(system, StructuredLLM):
        return _ask_structured_llm(system, example)
    if isinstance(system, LLM):
        return _ask_llm(system, example, target)
    if isinstance(system, BasePydanticProgram):
        return _ask_program(system, example)
    return _ask_function(system, example)


def check_askable(name: str, system: System, examples: Sequence[Example], targets: Sequence[Target]) -> None:
    """Raise ConfigurationError where this system cannot be asked these examples at all."""
    if isinstance(system, BaseQueryEngine):
        mute = [example for example in examples if example.query is None]
        if mute:
            raise ConfigurationError(
                f"system {name!r} is a query engine, which is asked example.query, but {len(mute)} of "
                f"{len(examples)} examples have none (the first: {mute[0].id[:12]}). Capture through the "
                "query engine, set `query` on the examples, or compare the bare LLM instead."
            )
    elif isinstance(system, BasePydanticProgram):
        for example in examples[:1]:
            _program_arguments(system, example)
    elif isinstance(system, LLM):
        if not isinstance(system, StructuredLLM) and any(
            target.output_cls is None and not target.is_text for target in targets
        ):
            raise ConfigurationError(
                f"system {name!r} is a bare LLM, which needs to know what to answer: pass output_cls=..., "
                "or use examples that have an answer_schema."
            )
    elif not callable(system):
        raise ConfigurationError(
            f"system {name!r} is a {type(system).__name__}; expected a LlamaIndex LLM, query engine or "
            "Pydantic program, or a function of an Example."
        )


async def _ask_query_engine(engine: BaseQueryEngine, example: Example) -> Reply:
    response: Any = await engine.aquery(example.query or "")
    if isinstance(response, AsyncStreamingResponse):
        response = await response.get_response()
    elif isinstance(response, StreamingResponse):
        response = response.get_response()
    return Reply(response.response, tuple(source_of(node) for node in response.source_nodes))


async def _ask_structured_llm(llm: StructuredLLM, example: Example) -> Reply:
    response = await llm.achat(_chat_messages(example))
    return Reply(response.raw if isinstance(response.raw, BaseModel) else response.message.content)


async def _ask_llm(llm: LLM, example: Example, target: Target) -> Reply:
    if target.output_cls is None:  # a text is asked for: held by check_askable
        return Reply((await llm.achat(_chat_messages(example))).message.content)
    prompt: Any = ChatPromptTemplate(message_templates=_chat_messages(example))
    return Reply(await llm.astructured_predict(target.output_cls, prompt))


async def _ask_program(program: BasePydanticProgram[Any], example: Example) -> Reply:
    return Reply(await program.acall(**_program_arguments(program, example)))


async def _ask_function(function: Callable[[Example], Any], example: Example) -> Reply:
    answer = function(example)
    answer = await answer if inspect.isawaitable(answer) else answer
    return answer if isinstance(answer, Reply) else Reply(answer)


def _program_arguments(program: BasePydanticProgram[Any], example: Example) -> dict[str, Any]:
    """A prompt's only variable gets the question (or last user message); several come from metadata."""
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
    return _text((users or list(example.messages))[-1].content)


def _chat_messages(example: Example) -> list[ChatMessage]:
    """The example's messages without the schema text, which structured prediction writes itself."""
    out = []
    for message in example.messages:
        text = _text(message.content)
        if example.schema_text and example.schema_text in text:
            # LlamaIndex's parser joins with a blank line; other white space is the prompt's own
            text = text.replace(example.schema_text, "").removesuffix("\n\n")
        out.append(ChatMessage(role=message.role, content=text, additional_kwargs=_extras(message.wire())))
    return out


def _extras(wire: Mapping[str, Any]) -> dict[str, Any]:
    return {key: wire[key] for key in ("tool_calls", "tool_call_id", "name") if key in wire}


def _text(content: str | list[dict[str, Any]] | None) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return content or ""


def fingerprint(system: System) -> str:
    """What tells this system from another of the same name: its class, its LLM and its prompts.

    A journal answers only for the system it was written for. Two models that call themselves the same
    (``metadata.model_name``) cannot be told apart: give them different names or cache folders.
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
