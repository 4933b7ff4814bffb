"""Every way in which LlamaIndex calls an LLM, as a table: how to run it and which examples it gives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import openai
from llama_index.core import PromptTemplate, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.chat_engine.types import ChatMode
from llama_index.core.llms import LLM, ChatMessage
from llama_index.core.program import FunctionCallingProgram, LLMTextCompletionProgram
from llama_index.core.tools import FunctionTool

from tests.capture.fakes import EchoLLM, OpenAIServer, SilentLLM, SilentStructuredLLM, Song

Run = Callable[[], Awaitable[Any]]
Build = Callable[[Any, VectorStoreIndex], Run]

PROMPT = "Name a song about {topic}."
HELLO = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Name a song.")]


@dataclass(frozen=True)
class Path:
    """``llm``: the kind of model for ``make_llm``. ``leaves``: the transports of the captured examples."""

    name: str
    llm: str
    build: Build
    leaves: tuple[str, ...]
    is_engine: bool = False
    schema: bool = False

    @property
    def names_class(self) -> bool:
        """Whether a span names the output class; a streamed FunctionCallingProgram has no span."""
        return not ("function_program" in self.name and "stream" in self.name)


def make_llm(kind: str, server: OpenAIServer, **kwargs: Any) -> LLM:
    if kind == "tools":
        return server.llm("gpt-4", **kwargs)
    if kind == "json_schema":
        return server.llm("gpt-4o-mini", **kwargs)
    if kind == "text":  # LlamaIndex would send tool_choice without tools, which the real API refuses
        kwargs |= {"pydantic_program_mode": "llm", "additional_kwargs": {"tool_choice": openai.omit}}
        return server.llm("gpt-4", **kwargs)
    if kind == "silent":
        return SilentLLM(**kwargs)
    if kind == "silent structured":
        return SilentStructuredLLM(**kwargs)
    if kind == "react":
        return EchoLLM(reply="Thought: I can answer.\nAnswer: Echoes", **kwargs)
    return EchoLLM(is_chat=kind == "chat", **kwargs)


async def drain(stream: Any) -> None:
    if isinstance(stream, AsyncIterator):
        async for _ in stream:
            pass
        return
    for _ in stream:
        pass


def sync(call: Callable[[Any, VectorStoreIndex], Any]) -> Build:
    """A path of one synchronous call."""

    def build(llm: Any, index: VectorStoreIndex) -> Run:
        async def run() -> None:
            call(llm, index)

        return run

    return build


def asynchronous(call: Callable[[Any, VectorStoreIndex], Awaitable[Any]]) -> Build:
    """A path of one awaited call."""

    def build(llm: Any, index: VectorStoreIndex) -> Run:
        return lambda: call(llm, index)

    return build


def streamed(call: Callable[[Any, VectorStoreIndex], Any]) -> Build:
    """A path whose stream is read to its end."""

    def build(llm: Any, index: VectorStoreIndex) -> Run:
        async def run() -> None:
            stream = call(llm, index)
            await drain(await stream if isinstance(stream, Awaitable) else stream)

        return run

    return build


def engine(*, asynchronous: bool = False, streaming: bool = False, **options: Any) -> Build:
    """A query engine, built before the query."""

    def build(llm: Any, index: VectorStoreIndex) -> Run:
        made = index.as_query_engine(llm=llm, similarity_top_k=2, streaming=streaming, **options)

        async def run() -> None:
            response = await made.aquery("Which song?") if asynchronous else made.query("Which song?")
            if streaming:
                stream = response.response_gen
                await drain(stream() if callable(stream) else stream)

        return run

    return build


def chat_engine(llm: Any, index: VectorStoreIndex) -> Run:
    made = index.as_chat_engine(chat_mode=ChatMode.CONTEXT, llm=llm)

    async def run() -> None:
        made.chat("Which song?")

    return run


def agent(kind: type[Any], **options: Any) -> Build:
    def build(llm: Any, index: VectorStoreIndex) -> Run:
        del index
        tool = FunctionTool.from_defaults(fn=song_of_year, name="song_of_year")
        made = kind(tools=[tool], llm=llm, **options)

        async def run() -> None:
            await made.run("Name a song.")

        return run

    return build


def song_of_year(title: str, year: int) -> str:
    """The song of a year."""
    return f"{title} {year}"


def text_program(llm: Any) -> Any:
    return LLMTextCompletionProgram.from_defaults(output_cls=Song, prompt_template_str=PROMPT, llm=llm)


def function_program(llm: Any) -> Any:
    return FunctionCallingProgram.from_defaults(output_cls=Song, prompt_template_str=PROMPT, llm=llm)


def _template() -> PromptTemplate:
    return PromptTemplate(PROMPT)


_TOOL = FunctionTool.from_defaults(fn=song_of_year, name="song_of_year")
_RAW: dict[str, Build] = {
    "complete": sync(lambda llm, _: llm.complete("Name a song.")),
    "acomplete": asynchronous(lambda llm, _: llm.acomplete("Name a song.")),
    "stream_complete": streamed(lambda llm, _: llm.stream_complete("Name a song.")),
    "astream_complete": streamed(lambda llm, _: llm.astream_complete("Name a song.")),
    "chat": sync(lambda llm, _: llm.chat(HELLO)),
    "achat": asynchronous(lambda llm, _: llm.achat(HELLO)),
    "stream_chat": streamed(lambda llm, _: llm.stream_chat(HELLO)),
    "astream_chat": streamed(lambda llm, _: llm.astream_chat(HELLO)),
    "predict": sync(lambda llm, _: llm.predict(_template(), topic="echoes")),
    "apredict": asynchronous(lambda llm, _: llm.apredict(_template(), topic="echoes")),
    "stream": streamed(lambda llm, _: llm.stream(_template(), topic="echoes")),
    "astream": streamed(lambda llm, _: llm.astream(_template(), topic="echoes")),
}
_STRUCTURED: dict[str, Build] = {
    "structured_predict": sync(lambda llm, _: llm.structured_predict(Song, _template(), topic="echoes")),
    "astructured_predict": asynchronous(lambda llm, _: llm.astructured_predict(Song, _template(), topic="a")),
    "stream_structured_predict": streamed(
        lambda llm, _: llm.stream_structured_predict(Song, _template(), topic="a")
    ),
    "astream_structured_predict": streamed(
        lambda llm, _: llm.astream_structured_predict(Song, _template(), topic="a")
    ),
    "structured_llm.chat": sync(lambda llm, _: llm.as_structured_llm(Song).chat(HELLO)),
    "structured_llm.achat": asynchronous(lambda llm, _: llm.as_structured_llm(Song).achat(HELLO)),
    "structured_llm.stream_chat": streamed(lambda llm, _: llm.as_structured_llm(Song).stream_chat(HELLO)),
    "structured_llm.astream_chat": streamed(lambda llm, _: llm.as_structured_llm(Song).astream_chat(HELLO)),
    "structured_llm.complete": sync(lambda llm, _: llm.as_structured_llm(Song).complete("Name a song.")),
    "structured_llm.acomplete": asynchronous(
        lambda llm, _: llm.as_structured_llm(Song).acomplete("Name one.")
    ),
}
_TEXT_PROGRAM: dict[str, Build] = {
    "text_program": sync(lambda llm, _: text_program(llm)(topic="a")),
    "text_program.acall": asynchronous(lambda llm, _: text_program(llm).acall(topic="a")),
    "text_program.stream_call": streamed(lambda llm, _: text_program(llm).stream_call(topic="a")),
    "text_program.astream_call": streamed(lambda llm, _: text_program(llm).astream_call(topic="a")),
}
_FUNCTION_PROGRAM: dict[str, Build] = {
    "function_program": sync(lambda llm, _: function_program(llm)(topic="a")),
    "function_program.acall": asynchronous(lambda llm, _: function_program(llm).acall(topic="a")),
    "function_program.stream_call": streamed(lambda llm, _: function_program(llm).stream_call(topic="a")),
    "function_program.astream_call": streamed(lambda llm, _: function_program(llm).astream_call(topic="a")),
}
_TOOLS: dict[str, Build] = {
    "chat_with_tools": sync(lambda llm, _: llm.chat_with_tools([_TOOL], "Name a song.")),
    "achat_with_tools": asynchronous(lambda llm, _: llm.achat_with_tools([_TOOL], "Name a song.")),
    "stream_chat_with_tools": streamed(lambda llm, _: llm.stream_chat_with_tools([_TOOL], "Name one.")),
    "astream_chat_with_tools": streamed(lambda llm, _: llm.astream_chat_with_tools([_TOOL], "Name one.")),
    "predict_and_call": sync(lambda llm, _: llm.predict_and_call([_TOOL], "Name a song.")),
    "apredict_and_call": asynchronous(lambda llm, _: llm.apredict_and_call([_TOOL], "Name a song.")),
}


def _rows(llm: str, builds: dict[str, Build], transport: str, **marks: Any) -> list[Path]:
    return [Path(f"{llm}:{name}", llm, build, (transport,), **marks) for name, build in builds.items()]


def _engines(llm: str, transport: str) -> list[Path]:
    modes = {mode: engine(output_cls=Song, response_mode=mode) for mode in ("compact", "tree_summarize")}
    builds = {
        **modes,
        "acompact": engine(output_cls=Song, asynchronous=True),
        "structured_filter": engine(output_cls=Song, response_mode="compact_accumulate"),
    }
    rows = _rows(llm, {f"engine.{name}": build for name, build in builds.items()}, transport)
    refine = Path(
        f"{llm}:engine.refine", llm, engine(output_cls=Song, response_mode="refine"), (transport,) * 2
    )
    return [Path(row.name, llm, row.build, row.leaves, True, True) for row in [*rows, refine]]


def _plain_engines(llm: str) -> list[Path]:
    builds = {
        "engine.plain": engine(),
        "engine.aplain": engine(asynchronous=True),
        "engine.streaming": engine(streaming=True),
        "engine.astreaming": engine(streaming=True, asynchronous=True),
        "engine.simple_summarize": engine(response_mode="simple_summarize", output_cls=Song),
        "chat_engine": chat_engine,
    }
    return _rows(llm, builds, "text", is_engine=True)


PATHS: list[Path] = [
    *_rows("tools", _RAW, "text"),
    *_rows("tools", _STRUCTURED, "tools", schema=True),
    *_rows("tools", _FUNCTION_PROGRAM, "tools", schema=True),
    *_rows("tools", _TEXT_PROGRAM, "text", schema=True),
    *_rows("tools", _TOOLS, "tools"),
    *_rows("json_schema", _STRUCTURED, "json_schema", schema=True),
    *_rows("text", _STRUCTURED, "text", schema=True),
    *_rows("chat", _RAW, "text"),
    *_rows("chat", _STRUCTURED, "text", schema=True),
    *_rows("chat", _TEXT_PROGRAM, "text", schema=True),
    *_rows("completion", _RAW, "text"),
    *_rows("completion", _STRUCTURED, "text", schema=True),
    *_rows(
        "silent", {key: _RAW[key] for key in ("complete", "acomplete", "chat", "achat", "predict")}, "text"
    ),
    *_rows(
        "silent structured",
        {
            key: _STRUCTURED[key]
            for key in ("structured_predict", "astructured_predict", "structured_llm.chat")
        },
        "json_schema",
        schema=True,
    ),
    *_engines("tools", "tools"),
    *_engines("json_schema", "json_schema"),
    *_engines("text", "text"),
    *_engines("completion", "text"),
    *_plain_engines("tools"),
    *_plain_engines("completion"),
    Path("tools:FunctionAgent", "tools", agent(FunctionAgent), ("tools", "tools")),
    Path(
        "tools:FunctionAgent.unstreamed", "tools", agent(FunctionAgent, streaming=False), ("tools", "tools")
    ),
]
