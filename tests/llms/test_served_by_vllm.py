"""A real vLLM server answers with an adapter as ``LoraLLM`` does, by ``served_llm``."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool

from llama_index_finetune_structured import LoraLLM, parity, served_llm, trust_of
from llama_index_finetune_structured.llms.served import ServedLora
from llama_index_finetune_structured.service.vllm.client import VllmClient
from llama_index_finetune_structured.trust.lookup import TRUST
from tests import exporting, vllm_servers
from tests.exporting import Colour

pytestmark = pytest.mark.slow
PROMPT = PromptTemplate("Describe colour {number}.")
MESSAGES = [ChatMessage("Describe colour 3.")]
CLOSE = 0.02  # probabilities: other kernels, and tokens far below the likeliest are not counted


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vllm_servers.vllm_command()  # skips before anything is trained
    folder = tmp_path_factory.mktemp("vllm")
    return exporting.train(vllm_servers.save_base(folder / "base"), folder / "run").adapter


@pytest.fixture(scope="module")
def llm(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedLora]:
    base, log = adapter.parent.parent / "base", tmp_path_factory.mktemp("log") / "vllm.log"
    for server in vllm_servers.children(base, log):
        server.start()
        server.wait_ready()
        VllmClient(server).load("tuned", adapter)
        yield served_llm(adapter, model="tuned", api_base=f"{server.url}/v1", api_key=server.key)


@pytest.fixture(scope="module")
def local(adapter: Path) -> LoraLLM:
    """The adapter in this process, without the rule that a server does not have."""
    return LoraLLM.from_adapter(adapter, grounded=False, alternatives=0)


def test_it_is_at_parity(local: LoraLLM, llm: ServedLora) -> None:
    found = parity(local, exporting.colours(12), {"vllm": llm}, show_progress=False)
    found.require()
    assert found.forms["vllm"].identical == 1


def test_answers_come_as_objects_with_the_trust_of_the_local_model(local: LoraLLM, llm: ServedLora) -> None:
    for number in range(3):
        answer: Any = llm.structured_predict(Colour, PROMPT, number=number)
        expected: Any = local.structured_predict(Colour, PROMPT, number=number)
        assert answer == expected
        trust, own = trust_of(answer), trust_of(expected)
        assert [field.path for field in trust.fields] == [field.path for field in own.fields]
        for field, local_field in zip(trust.fields, own.fields, strict=True):
            assert field.probability is not None
            assert local_field.probability is not None
            assert 0 < field.probability <= 1


def test_a_stream_grows_to_the_whole_answer(llm: ServedLora, local: LoraLLM) -> None:
    whole = local.chat(MESSAGES).message.content
    assert "".join(chunk.delta or "" for chunk in llm.stream_chat(MESSAGES)) == whole
    objects = list(llm.stream_structured_predict(Colour, PROMPT, number=3))
    assert objects[-1] == local.structured_predict(Colour, PROMPT, number=3)


def test_concurrent_answers_are_those_of_single_calls(llm: ServedLora, local: LoraLLM) -> None:
    async def all_of() -> list[Any]:
        return await asyncio.gather(
            *(llm.astructured_predict(Colour, PROMPT, number=number) for number in range(8))
        )

    expected = [local.structured_predict(Colour, PROMPT, number=number) for number in range(8)]
    assert asyncio.run(all_of()) == expected


def test_tools_are_called_as_by_the_local_model(llm: ServedLora, local: LoraLLM) -> None:
    tool = FunctionTool.from_defaults(fn=lambda name: name, name="paint", description="Paint a colour.")
    asked: dict[str, Any] = {"user_msg": "Paint red.", "tool_required": True, "max_tokens": 200}
    (call,) = llm.get_tool_calls_from_response(llm.chat_with_tools([tool], **asked))
    (expected,) = local.get_tool_calls_from_response(local.chat_with_tools([tool], **asked))
    assert (call.tool_name, call.tool_kwargs) == (expected.tool_name, expected.tool_kwargs)


def test_a_chat_with_a_schema_has_its_trust_in_the_response(llm: ServedLora) -> None:
    asked = {"type": "json_schema", "json_schema": {"name": "Colour", "schema": Colour.model_json_schema()}}
    response = llm.chat(MESSAGES, response_format=asked)
    assert {field["path"][0] for field in response.additional_kwargs[TRUST]["fields"]} == {"name", "warm"}
