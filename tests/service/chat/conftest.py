"""Shared by the tests of chat: a server with a tiny base model and an adapter; every reply is checked."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import OpenAI
from safetensors.torch import load_file, save_file

from llama_index_finetune_structured import LoraLLM
from tests import exporting
from tests.service.chat.chat_server import ChatServer
from tests.service.chat.replies import require_reply


@pytest.fixture(scope="session")
def colour_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny base model."""
    return exporting.save_base("llama", tmp_path_factory.mktemp("colour-base"))


@pytest.fixture(scope="session")
def endless_base(colour_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a base whose answers end at their limit alone."""
    folder = tmp_path_factory.mktemp("endless") / "base"
    shutil.copytree(colour_base, folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][:2] = 0  # of the two control tokens: another token is always likelier
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def colour_adapter(colour_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an adapter that was trained to describe colours."""
    return exporting.train(colour_base, tmp_path_factory.mktemp("colour-run")).adapter


@pytest.fixture(scope="session")
def chat_server(
    colour_base: Path,
    endless_base: Path,
    colour_adapter: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ChatServer]:
    """A server of the models ``tiny`` and ``endless``, two bases, and ``colours``, an adapter of the first."""
    server = ChatServer(tmp_path_factory.mktemp("service"), {"tiny": colour_base, "endless": endless_base})
    server.add("colours", "tiny", colour_adapter)
    with server.running():
        yield server


@pytest.fixture
def client(chat_server: ChatServer) -> Iterator[OpenAI]:
    def check(response: httpx.Response) -> None:
        if "json" in response.headers.get("content-type", ""):
            require_reply(response)

    http = httpx.Client(event_hooks={"response": [check]}, timeout=60)
    with chat_server.client(http_client=http) as client:
        yield client


@pytest.fixture
def colours(chat_server: ChatServer, colour_adapter: Path) -> LoraLLM:
    """The served adapter in this process."""
    return LoraLLM.from_adapter(colour_adapter)


@pytest.fixture
def tiny(colour_base: Path) -> LoraLLM:
    """The served base model in this process."""
    return LoraLLM(base_model=str(colour_base))
