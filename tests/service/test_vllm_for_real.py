"""The service before a real vLLM server that it started: answers of the local model, adapters at runtime, a crash."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from llama_index_finetune_structured import LoraLLM
from llama_index_finetune_structured.service.vllm.server import VllmChild
from tests import exporting, vllm_servers
from tests.agents.scripted import WIRE
from tests.service.chat.chat_server import scaled_adapter
from tests.service.vllm_service import ASKED, CHAT, FORMAT, VllmService

pytestmark = pytest.mark.slow
WAIT_S = 900  # it imports for minutes where the machine is busy


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vllm_servers.vllm_command()  # skips before anything is trained
    folder = tmp_path_factory.mktemp("vllm")
    return exporting.train(vllm_servers.save_base(folder / "base"), folder / "run").adapter


@pytest.fixture(scope="module")
def vllm(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmChild]:
    yield from vllm_servers.children(
        adapter.parent.parent / "base", tmp_path_factory.mktemp("log") / "vllm.log"
    )


@pytest.fixture(scope="module")
def service(
    vllm: VllmChild, adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VllmService]:
    folder, base = tmp_path_factory.mktemp("service"), adapter.parent.parent / "base"
    found = VllmService(folder, base, vllm, most_loaded=1, wait_s=WAIT_S)
    found.server.add("colours", "tiny", adapter)
    found.server.add("others", "tiny", scaled_adapter(adapter, folder / "others", 0.5))
    with found.server.running():
        yield found


@pytest.fixture(scope="module")
def own(adapter: Path) -> LoraLLM:
    return LoraLLM.from_adapter(adapter, grounded=False, alternatives=0)


def content(reply: Any) -> str:
    return str(reply.choices[0].message.content)


def test_answers_to_a_schema_are_those_of_the_local_model(service: VllmService, own: LoraLLM) -> None:
    reply = service.ask("colours", response_format=FORMAT, extra_body={"trust": True})
    local = own.chat(CHAT, response_format=FORMAT)
    assert content(reply) == local.message.content
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.model_dump(include={"prompt_tokens", "completion_tokens"}) == local.raw["usage"]
    told = reply.choices[0].trust["fields"]
    assert [field["path"] for field in told] == [field["path"] for field in local.raw["trust"]["fields"]]
    assert all(0 < field["probability"] <= 1 for field in told)


def test_a_stream_with_logprobs_is_the_whole_answer_in_pieces(service: VllmService, own: LoraLLM) -> None:
    asked: dict[str, Any] = {"max_tokens": 20, "logprobs": True, "top_logprobs": 3}
    chunks = service.ask("colours", **asked, stream=True)
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    text = "".join(choice.delta.content or "" for choice in choices)
    assert text == own.chat(CHAT, max_tokens=20).message.content
    told = [token for choice in choices if choice.logprobs for token in choice.logprobs.content]
    assert b"".join(bytes(token.bytes) for token in told).decode("utf-8", "replace").startswith(text)
    for token in told:
        assert token.logprob <= 0
        assert token.token == token.top_logprobs[0].token, "greedy"
        assert len(token.top_logprobs) == 3


def test_tools_are_called_as_by_the_local_model(service: VllmService, own: LoraLLM) -> None:
    asked: dict[str, Any] = {"tools": WIRE, "tool_choice": "required", "max_tokens": 300}
    calls = service.ask("colours", **asked).choices[0].message.tool_calls
    expected = own.get_tool_calls_from_response(own.chat(CHAT, **asked))
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        (call.tool_name, call.tool_kwargs) for call in expected
    ]


def test_the_base_model_and_drawn_choices_are_answered(service: VllmService) -> None:
    reply = service.ask("tiny", n=4, temperature=1.0, seed=3, max_tokens=8)
    again = service.ask("tiny", n=4, temperature=1.0, seed=3, max_tokens=8)
    texts = [choice.message.content for choice in reply.choices]
    assert len(set(texts)) > 1
    assert texts == [choice.message.content for choice in again.choices]


def test_adapters_take_turns_in_vllm(service: VllmService, vllm: VllmChild) -> None:
    first = content(service.ask("colours", max_tokens=20))
    assert content(service.ask("others", max_tokens=20)) != first
    assert content(service.ask("colours", max_tokens=20)) == first
    headers = {"Authorization": f"Bearer {vllm.key}"}
    known = httpx.get(f"{vllm.url}/v1/models", headers=headers, timeout=60).json()["data"]
    assert len([model for model in known if model["parent"]]) == 1


def test_a_client_that_leaves_ends_its_generation(service: VllmService) -> None:
    body = {"model": "colours", "messages": ASKED, "max_tokens": 1500, "temperature": 2.0, "stream": True}
    with httpx.stream("POST", f"{service.server.url}/chat/completions", json=body, timeout=600) as response:
        assert next(response.iter_lines())
    service.server.wait_until_idle(60)


def test_after_a_crash_of_vllm_the_next_request_is_answered(service: VllmService, vllm: VllmChild) -> None:
    before = content(service.ask("colours", response_format=FORMAT))
    assert vllm.pid is not None
    for child in Path(f"/proc/{vllm.pid}/task/{vllm.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    until, found = time.monotonic() + WAIT_S, ""
    while vllm.is_ready:
        time.sleep(0.05)
    while not found and time.monotonic() < until:
        with suppress(openai.InternalServerError):  # 503 until it answers again
            found = content(service.ask("colours", response_format=FORMAT))
        time.sleep(1)
    assert found == before
