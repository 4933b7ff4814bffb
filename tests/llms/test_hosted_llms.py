"""LLMs behind OpenAI's protocol: transports, text mode, programs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core import Document, MockEmbedding, VectorStoreIndex
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.types import PydanticProgramMode
from llama_index.llms.openai import OpenAI
from llama_index.llms.openai_like import OpenAILike  # type: ignore[import-untyped]
from openai import omit
from pydantic import BaseModel

from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.llms.compat import OpenAIPydanticProgram
from llama_index_finetune_structured.llms.hosted import HostedOpenAI, HostedOpenAILike, hosted_llm, text_mode
from tests.fakes.openai_server import OpenAIServer

CHAT = "/v1/chat/completions"


class Album(BaseModel):
    """Data model for an album."""

    name: str


PROMPT = PromptTemplate("An album")
ALBUM = Album(name="text")


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer() as running:
        yield running


def sent(server: OpenAIServer) -> set[str]:
    body = server.calls("POST", CHAT)[-1].json()
    return {"tools", "response_format", "tool_choice"} & set(body)


SENT = {"tools": {"tools", "tool_choice"}, "json_schema": {"response_format"}, "text": set()}


@pytest.mark.parametrize("model", ["ft:gpt-4o-mini:org::x", "gpt-4o", "my-adapter", "base:adapter"])
@pytest.mark.parametrize("transport", SENT)
def test_every_way_of_asking_uses_the_transport(transport: Any, model: str, server: OpenAIServer) -> None:
    llm = hosted_llm(model, api_base=server.base, api_key=server.key, transport=transport)
    index = VectorStoreIndex.from_documents([Document(text="Some text")], embed_model=MockEmbedding(8))
    engine = index.as_query_engine(llm=llm, output_cls=Album)
    ways = {
        "predict": lambda: llm.structured_predict(Album, PROMPT),
        "apredict": lambda: asyncio.run(llm.astructured_predict(Album, PROMPT)),
        "structured llm": lambda: llm.as_structured_llm(Album).chat([ChatMessage("An album")]).raw,
        "query engine": lambda: engine.query("Which album?").response,
    }
    for way, ask in ways.items():
        assert ask() == ALBUM, way
        assert sent(server) == SENT[transport], way
    assert server.refusals == []


def test_known_names_keep_llamaindexs_settings_and_others_are_openai_like() -> None:
    known = hosted_llm("ft:gpt-4o-mini:org::x", api_base="http://x/v1", api_key="k")
    other = hosted_llm("my-adapter", api_base="http://x/v1", api_key="k", context_window=8192)
    assert isinstance(known, HostedOpenAI)
    assert known.metadata.context_window == 128_000
    assert isinstance(other, HostedOpenAILike)
    assert isinstance(other, OpenAILike)
    assert (other.metadata.context_window, other.metadata.is_chat_model) == (8192, True)


def test_an_adapters_defaults_can_be_overruled() -> None:
    llm = hosted_llm(
        "a", api_base="http://x/v1", api_key="k", transport="text", is_function_calling_model=True
    )
    assert llm.metadata.is_function_calling_model


@pytest.mark.parametrize("transport", [None, "tools", "json_schema"])
def test_text_mode_is_a_copy(transport: Any, server: OpenAIServer) -> None:
    original = hosted_llm("adapter", api_base=server.base, api_key=server.key, transport=transport)
    copy = text_mode(original)
    assert copy.structured_predict(Album, PROMPT) == ALBUM
    assert sent(server) == set()
    assert (original.transport, original.pydantic_program_mode.value) == (
        transport,
        {"tools": "function"}.get(transport, "default"),
    )


def test_text_mode_keeps_the_settings_of_openais_class(server: OpenAIServer) -> None:
    original = OpenAI(
        "gpt-4", api_base=server.base, api_key=server.key, temperature=0.7, system_prompt="Be brief."
    )
    copy = text_mode(original)
    assert isinstance(copy, OpenAI)
    assert asyncio.run(copy.astructured_predict(Album, PROMPT)) == ALBUM
    body = server.calls("POST", CHAT)[-1].json()
    assert body["temperature"] == 0.7
    assert "Be brief." in str(body["messages"])
    assert original.pydantic_program_mode == PydanticProgramMode.DEFAULT


def test_text_mode_of_a_subclass_omits_the_choice_too(server: OpenAIServer) -> None:
    class Theirs(OpenAI):
        pass

    original = Theirs(model="gpt-4", api_base=server.base, api_key=server.key)
    copy = text_mode(original)
    assert isinstance(copy, Theirs)
    assert copy.additional_kwargs == {"tool_choice": omit}
    assert copy.structured_predict(Album, PROMPT) == ALBUM
    assert original.additional_kwargs == {}


def test_text_mode_takes_any_llm() -> None:
    assert text_mode(MockLLM()).pydantic_program_mode == PydanticProgramMode.LLM


def test_text_mode_still_calls_tools_when_there_are_some(server: OpenAIServer) -> None:
    llm = text_mode(OpenAI("gpt-4", api_base=server.base, api_key=server.key))
    program = OpenAIPydanticProgram.from_defaults(Album, "An album", llm=llm)
    assert program() == ALBUM
    assert sent(server) == {"tools", "tool_choice"}


def test_the_program_takes_the_references_arguments(server: OpenAIServer) -> None:
    program = OpenAIPydanticProgram.from_defaults(
        output_cls=Album,
        prompt=PromptTemplate("An album for {film}"),
        llm=OpenAI("gpt-4", api_base=server.base, api_key=server.key),
        verbose=True,
        allow_multiple=True,
        tool_choice={"type": "function", "function": {"name": "Album"}},
    )
    assert program(film="Ghost") == [ALBUM]
    body = server.calls("POST", CHAT)[-1].json()
    assert body["tool_choice"] == {"type": "function", "function": {"name": "Album"}}
    assert body["messages"][-1]["content"] == "An album for Ghost"


def test_the_program_refuses_a_model_without_functions() -> None:
    with pytest.raises(ValueError, match="function calling"):
        OpenAIPydanticProgram.from_defaults(Album, "An album", llm=MockLLM())


@pytest.mark.parametrize(
    "address", ["localhost", "http://user:pw@127.0.0.1:1", "http://127.0.0.1:1/v1?key=x"]
)
def test_what_is_no_address_or_holds_credentials_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"api_base .*(expected an address|give the key as api_key)"):
        hosted_llm("mine", api_base=address, api_key="k")
