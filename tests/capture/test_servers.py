"""``capture`` around a web server: calls of tasks and threads that the block did not start."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.llms import ChatMessage

from llama_index_finetune_structured import OpenAIFineTuningHandler
from llama_index_finetune_structured.capture import capture, read_examples
from llama_index_finetune_structured.errors import ConfigurationError
from tests.capture.fakes import EchoLLM, SilentLLM, SilentStructuredLLM, Song, index_of_songs

REQUESTS = 100
PROMPT = PromptTemplate("{text}")


class Server:
    """A loopback HTTP server as ASGI servers are built: its lifespan is a task beside those of the requests.

    A third of the endpoints is synchronous and runs in worker threads, which are started by the first requests.
    """

    def __init__(self, captured: capture, llm: EchoLLM) -> None:
        self._captured, self._llm = captured, llm
        self._pool = ThreadPoolExecutor(4)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = int((await reader.readline()).split()[1].strip(b"/"))
        if number % 3:
            await self._llm.achat([ChatMessage(role="user", content=f"async {number}")])
        else:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._pool, self._llm.complete, f"sync {number}")
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()
        writer.close()

    async def _lifespan(self, started: asyncio.Event, stop: asyncio.Event) -> None:
        with self._captured:
            started.set()
            await stop.wait()

    async def serve(self) -> None:
        """Answer all requests within the lifespan."""
        started, stop = asyncio.Event(), asyncio.Event()
        lifespan = asyncio.create_task(self._lifespan(started, stop))
        await started.wait()
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            await asyncio.gather(*(self._request(port, number) for number in range(REQUESTS)))
        stop.set()
        await lifespan
        self._pool.shutdown()

    async def _request(self, port: int, number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET /{number} HTTP/1.1\r\n\r\n".encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 204")
        writer.close()


async def test_a_capture_in_a_servers_lifespan_sees_every_request_with_everywhere(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    captured = capture(path, everywhere=True)
    await Server(captured, EchoLLM()).serve()
    numbers = {int(str(example.messages[0].content).split()[1]) for example in read_examples(path)}
    assert numbers == set(range(REQUESTS))
    assert (captured.summary()["captured"], captured.summary()["outside"]) == (REQUESTS, 0)
    assert caplog.text == ""


async def test_a_capture_in_a_servers_lifespan_sees_every_request_to_an_attached_llm(path: Path) -> None:
    captured, llm = capture(path), EchoLLM()
    captured.attach(llm)
    await Server(captured, llm).serve()
    assert captured.summary()["captured"] == REQUESTS


async def test_calls_that_a_block_missed_are_counted_and_the_warning_says_what_to_do(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    captured = capture(path)
    await Server(captured, EchoLLM()).serve()
    assert captured.summary()["captured"] + captured.summary()["outside"] == REQUESTS
    assert captured.summary()["outside"] == 66  # the asynchronous endpoints
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "66 LLM calls were made outside of its block and not captured (34 were captured)" in record.message
    assert "everywhere=True" in record.message
    assert "attach(" in record.message


@pytest.fixture
def older_thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(threading.get_ident).result()
        yield pool


@pytest.mark.parametrize("llm", [EchoLLM(), SilentLLM(), SilentStructuredLLM()])
def test_one_call_of_a_user_is_counted_once_though_an_llm_calls_itself(
    llm: EchoLLM, path: Path, older_thread: ThreadPoolExecutor
) -> None:
    with capture(path) as captured:
        older_thread.submit(llm.structured_predict, Song, PROMPT, text="x").result()
        older_thread.submit(index_of_songs().as_query_engine(llm=llm).query, "Which?").result()
    assert (captured.summary()["captured"], captured.summary()["outside"]) == (0, 2)


def test_a_call_that_another_recorder_has_is_not_missed(
    path: Path, tmp_path: Path, older_thread: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    llm = EchoLLM()
    handler = OpenAIFineTuningHandler(tmp_path / "handler.jsonl")
    handler.attach(llm)
    with capture(path) as captured:
        older_thread.submit(llm.complete, "x").result()
    EchoLLM().complete("after the block")
    assert captured.summary()["outside"] == 0
    assert handler.summary()["captured"] == 1
    assert handler.summary()["outside"] == 1
    assert caplog.text == ""


def _predict(llm: EchoLLM, name: str) -> None:
    with capture.document(name):
        llm.structured_predict(Song, PROMPT, text=name)


def _documents(path: Path) -> dict[str, str | None]:
    return {str(example.messages[0].content)[:2]: example.document_id for example in read_examples(path)}


def test_a_structured_prediction_gets_the_document_that_its_block_names(path: Path) -> None:
    llm = EchoLLM()
    with capture(path) as captured:
        llm.structured_predict(Song, PROMPT, text="d0")
        with captured.document("one"):
            llm.structured_predict(Song, PROMPT, text="d1")
            with capture.document("two"):
                llm.structured_predict(Song, PROMPT, text="d2")
            llm.structured_predict(Song, PROMPT, text="d3")
        llm.structured_predict(Song, PROMPT, text="d4")
    assert _documents(path) == {"d0": None, "d1": "one", "d2": "two", "d3": "one", "d4": None}


async def test_a_document_holds_in_the_tasks_and_threads_of_its_block_only(path: Path) -> None:
    llm, names = EchoLLM(), [f"d{number}" for number in range(20)]

    async def predict(name: str) -> None:
        with capture.document(name):
            await asyncio.sleep(0)
            await asyncio.gather(llm.achat([ChatMessage(role="user", content=f"{name[1:]:0>2}")]))
            await asyncio.to_thread(llm.complete, name)

    with capture(path):
        await asyncio.gather(*map(predict, names))
    assert {str(e.messages[0].content): e.document_id for e in read_examples(path)} == {
        **{name: name for name in names},
        **{f"{name[1:]:0>2}": name for name in names},
    }


def test_threads_name_the_document_of_their_own_calls(path: Path) -> None:
    llm, names = EchoLLM(), [f"d{number}" for number in range(8)]
    with capture(path), ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: _predict(llm, name), names))
    assert _documents(path) == {name: name for name in names}


def test_a_stream_read_after_the_block_keeps_its_document(path: Path) -> None:
    llm = EchoLLM()
    with capture(path):
        with capture.document("one"):
            stream = llm.stream_complete("d1")
        for _ in stream:
            pass
    assert _documents(path) == {"d1": "one"}


def test_a_named_document_replaces_that_of_the_retrieved_chunks(path: Path) -> None:
    with capture(path), capture.document("manual"):
        index_of_songs().as_query_engine(llm=EchoLLM()).query("Which?")
    (example,) = read_examples(path)
    assert example.document_id == "manual"
    assert example.sources
    assert {source.document_id for source in example.sources} <= {"doc0", "doc1", "doc2"}


@pytest.mark.parametrize("wrong", ["", None, 7])
def test_a_document_without_a_name_is_a_clear_error(wrong: object) -> None:
    with pytest.raises(ConfigurationError, match=r"document_id: .*, expected the document's name"):
        capture.document(wrong).__enter__()  # type: ignore[arg-type]
