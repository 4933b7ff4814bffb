"""Each path on which LlamaIndex calls an LLM, with each way of attaching, gives exactly the expected examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.callbacks import CallbackManager
from llama_index.llms.openai import OpenAI

from llama_index_finetune_structured.capture import OpenAIFineTuningHandler, capture, read_examples
from tests.capture.fakes import OpenAIServer, Song, index_of_songs
from tests.capture.paths import PATHS, Path, make_llm

pytestmark = [  # LlamaIndex's own streams and agents raise these
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince211"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

Make = Callable[..., tuple[Any, Any]]  # (llm options, index options) -> (llm, what runs the path)


@contextmanager
def on_the_llm(file: FilePath, make: Make) -> Iterator[Any]:
    manager = CallbackManager([OpenAIFineTuningHandler(file)])
    yield make({"callback_manager": manager}, {})


@contextmanager
def on_the_llm_after_building(file: FilePath, make: Make) -> Iterator[Any]:
    llm, run = make({}, {})
    llm.callback_manager = CallbackManager([OpenAIFineTuningHandler(file)])
    yield llm, run


@contextmanager
def attached(file: FilePath, make: Make) -> Iterator[Any]:
    llm, run = make({}, {})
    handler = OpenAIFineTuningHandler(file)
    handler.attach(llm)
    yield llm, run
    assert handler.path == file


@contextmanager
def settings_before_building(file: FilePath, make: Make) -> Iterator[Any]:
    Settings.callback_manager = CallbackManager([OpenAIFineTuningHandler(file)])
    yield make({}, {})


@contextmanager
def settings_after_building(file: FilePath, make: Make) -> Iterator[Any]:
    made = make({}, {})
    Settings.callback_manager = CallbackManager([OpenAIFineTuningHandler(file)])
    yield made


@contextmanager
def on_the_index(file: FilePath, make: Make) -> Iterator[Any]:
    manager = CallbackManager([OpenAIFineTuningHandler(file)])
    yield make({}, {"callback_manager": manager})


@contextmanager
def in_a_scope(file: FilePath, make: Make) -> Iterator[Any]:
    made = make({}, {})
    with capture(file):
        yield made


WAYS = [
    on_the_llm,
    on_the_llm_after_building,
    attached,
    settings_before_building,
    settings_after_building,
    on_the_index,
    in_a_scope,
]
TABLE = [
    pytest.param(way, path, id=f"{way.__name__}-{path.name}")
    for way in WAYS
    for path in PATHS
    if way is not on_the_index or path.is_engine
]


@pytest.mark.parametrize(("way", "path"), TABLE)
async def test_each_path_with_each_way_of_attaching_gives_exactly_its_examples(
    way: Callable[..., Any], path: Path, server: OpenAIServer, tmp_path: FilePath
) -> None:
    def make(llm_options: dict[str, Any], index_options: dict[str, Any]) -> tuple[Any, Any]:
        llm = make_llm(path.llm, server, **llm_options)
        return llm, path.build(llm, index_of_songs(**index_options))

    file = tmp_path / "songs.jsonl"
    with way(file, make) as (llm, run):
        await run()
        if isinstance(llm, OpenAI):
            await llm._async_http_client.aclose()
    examples = list(read_examples(file))
    if (way is on_the_llm and path.is_engine) or (
        way is on_the_llm_after_building and "chat_engine" in path.name
    ):
        assert examples == []  # LlamaIndex replaces the LLM's manager; attach() works
        return
    assert tuple(example.transport for example in examples) == path.leaves
    if server.requests:
        _same_as_sent(examples, server.requests)
    for example in examples:
        assert example.answer.role == "assistant"
        if path.schema:
            assert example.answer_schema is not None
            assert example.answer_schema["properties"] == Song.model_json_schema()["properties"]
            if path.names_class:
                assert example.answer_schema == Song.model_json_schema()
            assert example.schema_name == "Song"
            assert example.answer_object() == {"title": "Echoes", "year": 1971}
            assert (example.schema_text is None) == (example.transport != "text")
        if path.is_engine:
            assert example.query == "Which song?"
            assert example.sources
            assert example.document_id in {source.document_id for source in example.sources}


def _same_as_sent(examples: list[Any], requests: list[dict[str, Any]]) -> None:
    assert len(examples) == len(requests)
    for example, request in zip(examples, requests, strict=True):
        assert [message.wire() for message in example.messages] == request["messages"]
        assert example.tools == request.get("tools")
        assert example.tool_choice == request.get("tool_choice")
        assert example.parallel_tool_calls == request.get("parallel_tool_calls")
        assert example.response_format == request.get("response_format")
        if example.schema_text is not None:
            assert any(example.schema_text in message["content"] for message in request["messages"])
