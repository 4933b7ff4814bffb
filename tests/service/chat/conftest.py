"""Shared by the tests of the service: a server with a tiny base model and adapters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from tests import exporting
from tests.service.chat.chat_server import ChatServer


@pytest.fixture(scope="session")
def colour_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny base model."""
    return exporting.save_base("llama", tmp_path_factory.mktemp("colour-base"))


@pytest.fixture(scope="session")
def colour_adapter(colour_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an adapter that was trained to describe colours."""
    return exporting.train(colour_base, tmp_path_factory.mktemp("colour-run")).adapter


@pytest.fixture(scope="session")
def chat_server(
    colour_base: Path, colour_adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ChatServer]:
    """A server of the models ``tiny``, a base, and ``colours``, an adapter of it."""
    server = ChatServer(tmp_path_factory.mktemp("service"), {"tiny": colour_base})
    server.add("colours", "tiny", colour_adapter)
    with server.running():
        yield server


@pytest.fixture
def client(chat_server: ChatServer) -> Iterator[OpenAI]:
    with chat_server.client() as client:
        yield client
