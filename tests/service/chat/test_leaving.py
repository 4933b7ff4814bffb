"""Clients that leave, too many clients, models that fail: places are freed, and errors are of OpenAI's shape."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from safetensors.torch import load_file, save_file

from llama_index_finetune_structured import LoraLLM
from tests import exporting
from tests.service.chat.chat_server import ChatServer, scaled_adapter
from tests.service.chat.test_chat import ASKED, CHAT, FORMAT

LONG: Any = {"model": "endless", "max_tokens": 4000, "messages": ASKED}  # a minute or more


def sequences(server: ChatServer) -> int:
    """How many answers are being generated."""
    return sum(len(llm._loaded.engine._decoder.sequences) for llm in server.loaded_llms())


def wait_until(condition: Any, seconds: float = 60) -> float:
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() < begun + seconds, "waited too long"
        time.sleep(0.01)
    return time.monotonic() - begun


@pytest.mark.parametrize("way", ["stream", "whole", "several"])
def test_a_client_that_leaves_ends_its_generation(way: str, chat_server: ChatServer) -> None:
    chat_server.wait_until_idle()
    body = {**LONG, "stream": way == "stream", "n": 3 if way == "several" else 1}
    with httpx.Client() as http:
        url = f"{chat_server.url}/chat/completions"
        if way == "stream":
            with http.stream("POST", url, json=body, timeout=60) as response:
                lines = response.iter_lines()
                assert next(lines)
                wait_until(lambda: sequences(chat_server))
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post(url, json=body, timeout=httpx.Timeout(60, read=0.2))
    chat_server.wait_until_idle()
    wait_until(lambda: not sequences(chat_server), 10)


@pytest.fixture
def busy(endless_base: Path, tmp_path: Path) -> Iterator[ChatServer]:
    """A server that answers one call at a time and lets one wait."""
    queue = {"most_answered": 1, "most_waiting": 1, "wait_s": 1.0}
    with ChatServer(tmp_path / "service", {"endless": endless_base}, queue).running() as server:
        yield server


def test_too_many_calls_are_refused_and_waiting_ends_in_time(busy: ChatServer) -> None:
    async def ask() -> tuple[list[Any], Any]:
        client = busy.async_client()
        short: Any = {**LONG, "max_tokens": 1}
        await client.with_options(max_retries=20).chat.completions.create(**short)  # the model is loaded
        first = await client.chat.completions.create(stream=True, **LONG)
        errors = await asyncio.gather(
            *(client.chat.completions.create(**short) for _ in range(3)), return_exceptions=True
        )
        await first.close()
        return errors, await client.with_options(max_retries=8).chat.completions.create(**short)

    errors, after = asyncio.run(ask())
    assert after.choices[0].message.content
    replies = [error.response for error in errors if isinstance(error, openai.APIStatusError)]
    assert sorted(reply.status_code for reply in replies) == [429, 429, 503]
    for reply in replies:
        assert 1 <= int(reply.headers["retry-after"]) <= 60
        assert reply.json()["error"]["code"] in ("too_many_waiting", "queue_timeout")
    busy.wait_until_idle()


@pytest.fixture
def broken(colour_base: Path, tmp_path: Path) -> Iterator[ChatServer]:
    """A server of a base whose activations overflow, and of a folder that is no base any more."""
    folder = exporting.save_base("llama", tmp_path / "nan")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], 3e38)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    bases = {"nan": folder, "gone": tmp_path / "gone"}
    with ChatServer(tmp_path / "service", bases).running() as server:
        yield server


def test_an_error_of_generation_is_told_without_a_trace_whole_and_in_a_stream(broken: ChatServer) -> None:
    client = broken.client()
    with pytest.raises(openai.InternalServerError, match="NaN") as caught:
        client.chat.completions.create(model="nan", messages=ASKED)
    assert caught.value.code == "generation_failed"
    with pytest.raises(openai.APIError, match="NaN"):
        list(client.chat.completions.create(model="nan", messages=ASKED, stream=True))
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="gone", messages=ASKED)
    assert caught.value.code == "model_not_loaded"
    assert str(broken.folder.parent) not in str(caught.value), "folders are not for clients"
    broken.wait_until_idle()


async def many_clients(server: ChatServer, clients: int, models: list[str], own: dict[str, str]) -> int:
    """Ask from many clients at once, half of which leave at some point; returns how many answers came whole."""
    sdk = server.async_client(timeout=600)
    dice = random.Random(7)

    async def one(model: str, leaves: bool, streams: bool, after: float) -> int:
        asked: Any = {"model": model, "messages": ASKED, "response_format": FORMAT}
        if not streams:
            call = sdk.chat.completions.create(**asked)
            if leaves:
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(call, after)
                return 0
            assert (await call).choices[0].message.content == own[model]
            return 1
        text = ""
        async with await sdk.chat.completions.create(stream=True, **asked) as stream:
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
                if leaves and len(text) > after * 10:
                    return 0
        assert text == own[model]
        return 1

    return sum(
        await asyncio.gather(
            *(one(models[n % len(models)], n % 2 == 1, n % 4 < 2, dice.random()) for n in range(clients))
        )
    )


def ask_many(server: ChatServer, adapters: dict[str, Path], clients: int) -> None:
    own = {}
    for name, adapter in adapters.items():
        own[name] = LoraLLM.from_adapter(adapter).chat(CHAT, response_format=FORMAT).message.content or ""
    whole = asyncio.run(many_clients(server, clients, list(adapters), own))
    assert whole >= clients // 2
    server.wait_until_idle(60)
    wait_until(lambda: not sequences(server), 20)
    assert len(server.pool.loaded) <= server.most_loaded


def test_clients_of_several_adapters_come_and_go(
    colour_base: Path, colour_adapter: Path, tmp_path: Path
) -> None:
    _several_adapters(colour_base, colour_adapter, tmp_path, adapters=3, clients=12)


@pytest.mark.slow
def test_a_hundred_clients_of_several_adapters_come_and_go(
    colour_base: Path, colour_adapter: Path, tmp_path: Path
) -> None:
    _several_adapters(colour_base, colour_adapter, tmp_path, adapters=8, clients=100)


def _several_adapters(base: Path, adapter: Path, folder: Path, *, adapters: int, clients: int) -> None:
    server = ChatServer(folder / "service", {"tiny": base}, most_loaded=2)
    own = {
        f"colours-{n}": scaled_adapter(adapter, folder / f"adapter-{n}", 1 - n / 10) for n in range(adapters)
    }
    for name, path in own.items():
        server.add(name, "tiny", path)
    with server.running():
        ask_many(server, own, clients)


def test_a_deleted_model_is_gone_for_new_requests_and_its_name_may_be_anothers(
    chat_server: ChatServer, colour_adapter: Path
) -> None:
    chat_server.add("short-lived", "tiny", colour_adapter)
    client = chat_server.client()
    asked: Any = {"model": "short-lived", "messages": ASKED, "max_tokens": 200}
    stream = client.chat.completions.create(stream=True, **asked)
    next(iter(stream))
    client.models.delete("short-lived")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**asked)
    assert list(stream)[-1].choices[0].finish_reason, "an answer that had begun ends in order"


def test_json_that_is_broken_or_deep_is_a_bad_request(chat_server: ChatServer) -> None:
    url = f"{chat_server.url}/chat/completions"
    deep: Any = {"type": "object"}
    for _ in range(200):
        deep = {"type": "object", "properties": {"a": deep}}
    body = {**LONG, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": deep}}}
    for content in (b"{", b"[]", b"[" * 5000, json.dumps(body).encode()):
        reply = httpx.post(url, content=content, headers={"content-type": "application/json"}, timeout=60)
        assert reply.status_code == 400, reply.text
        assert reply.json()["error"]["type"] == "invalid_request_error"
