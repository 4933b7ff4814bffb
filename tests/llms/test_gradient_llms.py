"""LLMs behind Gradient's protocol: every LlamaIndex method, over real HTTP with the real SDK."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.llms import ChatMessage
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.program import LLMTextCompletionProgram
from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel, ValidationError

from llama_index_finetune_structured.errors import ConfigurationError, ServiceError
from llama_index_finetune_structured.llms.gradient import GradientBaseModelLLM, GradientModelAdapterLLM
from tests.fakes.gradient_server import SLUG, GradientServer

COMPLETE = r"/api/models/[^/]+/complete"


class Album(BaseModel):
    """Data model for an album."""

    name: str
    artist: str


@pytest.fixture
def gradient() -> Iterator[GradientServer]:
    with GradientServer() as running:
        yield running


@pytest.fixture(autouse=True)
def _environment(gradient: GradientServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIENT_API_URL", gradient.host)
    monkeypatch.setenv("GRADIENT_ACCESS_TOKEN", gradient.token)
    monkeypatch.setenv("GRADIENT_WORKSPACE_ID", gradient.workspace)


@pytest.fixture
def llm() -> GradientBaseModelLLM:
    return GradientBaseModelLLM(base_model_slug=SLUG, max_tokens=300, is_chat_model=True)


@pytest.fixture
def tuned(gradient: GradientServer) -> GradientModelAdapterLLM:
    adapter_id = "00000000-0000-0000-0000-0000000000ff_model_adapter"
    gradient.adapters[adapter_id] = {"id": adapter_id}
    gradient.trained[adapter_id] = [["something"]]
    return GradientModelAdapterLLM(model_adapter_id=adapter_id, max_tokens=500, is_chat_model=True)


MESSAGES = [ChatMessage(role="user", content="hello")]
TEXT = "Sure, here is an album! STOP and more"


def test_every_sync_method_answers(llm: GradientBaseModelLLM) -> None:
    assert llm.complete("hello").text == TEXT
    assert llm.chat(MESSAGES).message.content == TEXT
    assert [chunk.delta for chunk in llm.stream_complete("hello")] == [TEXT]
    assert [chunk.delta for chunk in llm.stream_chat(MESSAGES)] == [TEXT]


def test_every_async_method_answers_in_any_loop(llm: GradientBaseModelLLM) -> None:
    async def all_four() -> list[Any]:
        return [
            (await llm.acomplete("hello")).text,
            (await llm.achat(MESSAGES)).message.content,
            *[chunk.delta async for chunk in await llm.astream_complete("hello")],
            *[chunk.delta async for chunk in await llm.astream_chat(MESSAGES)],
        ]

    for _ in range(2):
        assert asyncio.run(all_four()) == [TEXT] * 4


def test_one_call_is_one_event(llm: GradientBaseModelLLM) -> None:
    handler = LlamaDebugHandler(print_trace_on_end=False)
    llm.callback_manager = CallbackManager([handler])
    llm.chat(MESSAGES)
    asyncio.run(llm.achat(MESSAGES))
    llm.complete("hello")
    list(llm.stream_chat(MESSAGES))
    assert len(handler.get_llm_inputs_outputs()) == 4


def test_the_parameters_reach_the_server(llm: GradientBaseModelLLM, gradient: GradientServer) -> None:
    llm.complete("hello", temperature=0.5, top_k=3, top_p=0.9, max_tokens=7, auto_template=False)
    body = gradient.calls("POST", COMPLETE)[0].json()
    assert body["query"] == "hello"
    assert (body["temperature"], body["topK"], body["topP"]) == (0.5, 3, 0.9)
    assert (body["maxGeneratedTokenCount"], body["autoTemplate"]) == (7, False)


def test_a_prompt_is_sent_as_it_was_trained_unless_a_template_is_asked_for(
    llm: GradientBaseModelLLM, gradient: GradientServer
) -> None:
    llm.complete("hello")
    assert gradient.calls("POST", COMPLETE)[0].json()["autoTemplate"] is None


def test_constructor_takes_what_llamaindex_llms_take(gradient: GradientServer) -> None:
    llm = GradientBaseModelLLM(
        base_model_slug=SLUG, temperature=0.2, system_prompt="Be brief.", pydantic_program_mode="llm"
    )
    llm.predict(PromptTemplate("hello"))
    body = gradient.calls("POST", COMPLETE)[0].json()
    assert body["temperature"] == 0.2
    assert "Be brief." in body["query"]


@pytest.mark.parametrize("stop", ["STOP", ["nothing", "STOP"]])
def test_stop_words_cut_the_answer(stop: Any, llm: GradientBaseModelLLM) -> None:
    assert llm.complete("hello", stop=stop).text == "Sure, here is an album! "


def test_options_that_the_protocol_does_not_have_are_refused(llm: GradientBaseModelLLM) -> None:
    with pytest.raises(ConfigurationError, match="no keyword logit_bias"):
        llm.complete("hello", logit_bias={"1": 2})


@pytest.mark.parametrize("tokens", [0, 512])
def test_the_protocols_token_limit_holds(tokens: int) -> None:
    with pytest.raises(ValidationError):
        GradientBaseModelLLM(base_model_slug=SLUG, max_tokens=tokens)


def test_an_unknown_slug_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=f"there are: {SLUG}"):
        GradientBaseModelLLM(base_model_slug="llama9").complete("hello")


@pytest.mark.parametrize("host", [None, "https://api.gradient.ai/api"])
def test_the_retired_host_is_refused_at_construction(
    host: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GRADIENT_API_URL", raising=False)
    with pytest.raises(ConfigurationError, match="retired"):
        GradientBaseModelLLM(base_model_slug=SLUG, host=host)


def test_names_and_metadata_are_its_own(llm: GradientBaseModelLLM, tuned: GradientModelAdapterLLM) -> None:
    assert (llm.class_name(), tuned.class_name()) == ("GradientBaseModelLLM", "GradientModelAdapterLLM")
    assert llm.metadata.model_name == SLUG
    assert (tuned.metadata.num_output, tuned.metadata.is_chat_model) == (500, True)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda llm: pickle.loads(pickle.dumps(llm))])
def test_a_copy_answers_like_the_original(copied: Any, llm: GradientBaseModelLLM) -> None:
    llm.complete("hello")
    assert copied(llm).complete("hello").text == TEXT


@pytest.mark.parametrize("kind", ["reset", "truncate", "garbage", "reply"])
def test_a_lost_answer_is_retried(kind: str, llm: GradientBaseModelLLM, gradient: GradientServer) -> None:
    gradient.fault("POST", COMPLETE, kind)
    assert llm.complete("hello").text == TEXT


def test_a_refusal_is_not_retried(
    llm: GradientBaseModelLLM, gradient: GradientServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIENT_ACCESS_TOKEN", "wrong")
    with pytest.raises(ServiceError, match="401"):
        llm.complete("hello")
    assert len(gradient.exchanges) == 1


def test_the_tuned_model_fills_a_schema_and_the_base_model_does_not(
    llm: GradientBaseModelLLM, tuned: GradientModelAdapterLLM
) -> None:
    def program(model: Any) -> Any:
        return LLMTextCompletionProgram.from_defaults(
            output_parser=PydanticOutputParser(Album), prompt_template_str="An album for {film}", llm=model
        )

    assert program(tuned)(film="Goodfellas") == Album(name="text", artist="text")
    with pytest.raises(ValueError, match="json"):
        program(llm)(film="Goodfellas")


def test_structured_predict_works_sync_and_async(tuned: GradientModelAdapterLLM) -> None:
    prompt = PromptTemplate("An album")
    expected = Album(name="text", artist="text")
    assert tuned.structured_predict(Album, prompt) == expected
    assert asyncio.run(tuned.astructured_predict(Album, prompt)) == expected
    assert tuned.as_structured_llm(Album).complete("An album").raw == expected
