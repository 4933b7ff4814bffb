"""Fixtures of the capture tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from llama_index.core import Settings
from llama_index.core.callbacks import CallbackManager

from tests.capture.fakes import OpenAIServer, openai_server


@pytest.fixture(scope="session")
def _server() -> Iterator[OpenAIServer]:
    with openai_server() as server:
        yield server


@pytest.fixture
def server(_server: OpenAIServer) -> Iterator[OpenAIServer]:
    fresh = OpenAIServer(_server.url)
    _server.__dict__.update(fresh.__dict__)
    yield _server
    for client in _server.clients:
        client.close()


@pytest.fixture(autouse=True)
def _fresh_settings() -> Iterator[None]:
    Settings._callback_manager = None  # an empty manager made beside another shares the other's handlers
    Settings._callback_manager = CallbackManager([])
    yield
    Settings._callback_manager = None


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "songs.jsonl"
