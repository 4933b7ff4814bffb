"""Many threads and tasks at once: exactly as many records as calls, each with its own prompt and answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, CompletionResponse, LLMMetadata
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.llms.custom import CustomLLM

from llama_index_finetune_structured.capture import OpenAIFineTuningHandler, capture, read_examples
from tests.capture.fakes import EchoLLM, index_of_songs


class ParrotLLM(CustomLLM):
    """Says the last word of its prompt."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="parrot", is_chat_model=True)

    @llm_completion_callback()
    def complete(self, prompt: str, **_: Any) -> CompletionResponse:
        return CompletionResponse(text=prompt.split()[-1])

    @llm_completion_callback()
    async def acomplete(self, prompt: str, **_: Any) -> CompletionResponse:
        await asyncio.sleep(0)
        return CompletionResponse(text=prompt.split()[-1])

    @llm_completion_callback()
    def stream_complete(self, prompt: str, **_: Any) -> Any:
        yield CompletionResponse(text=prompt.split()[-1], delta="")


def nine_thousand_calls_in_64_threads_and_a_thousand_tasks(llm: ParrotLLM) -> None:
    def work(thread: int) -> None:
        for number in range(thread, 9_000, 64):
            if number % 3:
                llm.complete(f"say {number}")
            else:
                list(llm.stream_complete(f"say {number}"))

    async def tasks() -> None:
        await asyncio.gather(*(llm.acomplete(f"say {number}") for number in range(9_000, 10_000)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    asyncio.run(tasks())
    for thread in threads:
        thread.join()


def by_scope(path: Path) -> tuple[ParrotLLM, AbstractContextManager[Any], Callable[[], dict[str, Any]]]:
    captured = capture(path)
    return ParrotLLM(), captured, captured.summary


def by_handler(path: Path) -> tuple[ParrotLLM, AbstractContextManager[Any], Callable[[], dict[str, Any]]]:
    handler = OpenAIFineTuningHandler(path)
    return ParrotLLM(callback_manager=CallbackManager([handler])), nullcontext(), handler.summary


@pytest.mark.parametrize("way", [by_scope, by_handler])
def test_ten_thousand_concurrent_calls_are_ten_thousand_records(way: Any, tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    llm, context, summary = way(path)
    with context:
        nine_thousand_calls_in_64_threads_and_a_thousand_tasks(llm)
    examples = list(read_examples(path))
    assert summary() == {
        "captured": 10_000,
        "rejected": {},
        "dropped_by_redaction": 0,
        "internal_errors": 0,
        "outside": 0,
    }
    assert len(examples) == 10_000
    answers = {str(example.messages[0].content): example.answer_text() for example in examples}
    assert answers == {f"say {number}": str(number) for number in range(10_000)}


def test_a_thread_that_ran_before_the_block_is_not_in_scope_unless_attached(tmp_path: Path) -> None:
    before, attached = EchoLLM(reply="before"), EchoLLM(reply="attached")
    with ThreadPoolExecutor(1) as older, capture(tmp_path / "a.jsonl") as captured:
        older.submit(int).result()
    with ThreadPoolExecutor(1) as older:
        older.submit(int).result()
        with capture(tmp_path / "b.jsonl") as captured:
            captured.attach(attached)
            older.submit(before.complete, "x").result()
            older.submit(attached.complete, "x").result()
            with ThreadPoolExecutor(1) as newer:
                newer.submit(EchoLLM(reply="newer").complete, "x").result()
    assert [example.answer_text() for example in read_examples(captured.path)] == ["attached", "newer"]


def test_blocks_in_two_threads_keep_to_themselves(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)

    def work(number: int) -> list[str]:
        barrier.wait()
        with capture(tmp_path / f"{number}.jsonl") as captured:
            barrier.wait()
            for _ in range(20):
                EchoLLM(reply=str(number)).complete("x")
            barrier.wait()
        return [example.answer_text() for example in read_examples(captured.path)]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(8)))
    assert found == [[str(number)] * 20 for number in range(8)]


async def test_blocks_in_two_tasks_keep_to_themselves(tmp_path: Path) -> None:
    async def work(number: int) -> list[str]:
        with capture(tmp_path / f"{number}.jsonl") as captured:
            for _ in range(20):
                await EchoLLM(reply=str(number)).achat([ChatMessage(role="user", content="x")])
                await asyncio.sleep(0)
        return [example.answer_text() for example in read_examples(captured.path)]

    assert await asyncio.gather(*map(work, range(8))) == [[str(number)] * 20 for number in range(8)]


async def test_concurrent_queries_keep_their_own_question_and_nodes(tmp_path: Path) -> None:
    engine = index_of_songs().as_query_engine(llm=EchoLLM(), similarity_top_k=1)
    with capture(tmp_path / "calls.jsonl") as captured:
        await asyncio.gather(*(engine.aquery(f"Question {number}?") for number in range(50)))
    examples = list(read_examples(captured.path))
    assert len(examples) == 50
    for example in examples:
        assert example.query is not None
        assert any(example.query in str(message.content) for message in example.messages)
        assert len(example.sources) == 1
