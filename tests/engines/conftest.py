"""Fixtures of the hosted engines' tests: a server, a fake clock, runs in the test's own folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_index_finetune_structured.engines.hosted.engine import OpenAIFinetuneEngine
from llama_index_finetune_structured.engines.hosted.providers import PROVIDERS
from llama_index_finetune_structured.engines.timeouts import Timeouts
from tests.fakes.clock import FakeClock
from tests.fakes.openai_server import OpenAIServer
from tests.fakes.rows import write_rows

KEY_VARIABLES = (
    *(
        name
        for provider in PROVIDERS.values()
        for name in (*provider.key_variables, *provider.base_variables)
    ),
    *("GRADIENT_ACCESS_TOKEN", "GRADIENT_WORKSPACE_ID", "GRADIENT_API_URL"),
)


@pytest.fixture(autouse=True)
def _own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LLAMA_INDEX_FINETUNE_STRUCTURED_RUNS", str(tmp_path / "runs"))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def timeouts(clock: FakeClock) -> Timeouts:
    return Timeouts(clock=clock, request_s=20)


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer() as running:
        yield running


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "train.jsonl")


@pytest.fixture
def make(server: OpenAIServer, data: Path, timeouts: Timeouts) -> Any:
    def build(at: OpenAIServer = server, **options: Any) -> OpenAIFinetuneEngine:
        given: dict[str, Any] = {
            "api_base": at.base,
            "api_key": at.key,
            "timeouts": timeouts,
            "data_path": data,
        } | options
        return OpenAIFinetuneEngine("gpt-4o-mini", **given)

    return build
