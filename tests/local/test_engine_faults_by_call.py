"""A fault of any kind at any call of the engine's thread ends every way of asking with an answer or an error."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage
from pydantic import BaseModel

from llama_index_finetune_structured import LoraLLM
from llama_index_finetune_structured.local.generate import decoders

BOUND_S = 60  # a wait for ever, also on a busy machine
FOLDER = str(Path(decoders.__file__).parent)
KINDS: list[type[BaseException]] = [RuntimeError, MemoryError, KeyboardInterrupt, SystemExit, RecursionError]


class Letter(BaseModel):
    a: bool
    b: list[bool]


class Injector:
    """Raises ``kind`` at the n-th call that the engine's thread makes inside the engine's folder."""

    def __init__(self, at: int | None, kind: type[BaseException]) -> None:
        self._at, self._kind, self.places = at, kind, list[str]()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if threading.current_thread().name != "local-model" or not code.co_filename.startswith(FOLDER):
            return
        # Without the functions that end what everything below them left open.
        if code.co_name in ("_work", "_end", "_fail"):
            return
        self.places.append(f"{Path(code.co_filename).name}:{code.co_name}")
        if len(self.places) - 1 == self._at:
            raise self._kind("injected")


def _messages() -> list[ChatMessage]:
    return [ChatMessage(content="A song?")]


async def _consumed(llm: LoraLLM) -> None:
    async for _ in await llm.astream_chat(_messages()):
        pass


async def _batch(llm: LoraLLM) -> None:
    await asyncio.gather(*(llm.acomplete(f"{n}?") for n in range(3)), return_exceptions=True)


WAYS: dict[str, Callable[[LoraLLM], Any]] = {
    "chat": lambda llm: llm.chat(_messages()),
    "stream_chat": lambda llm: list(llm.stream_chat(_messages())),
    "achat": lambda llm: asyncio.run(llm.achat(_messages())),
    "astream_chat": lambda llm: asyncio.run(_consumed(llm)),
    "batch": lambda llm: asyncio.run(_batch(llm)),
    "structured": lambda llm: llm.as_structured_llm(Letter).chat(_messages(), max_new_tokens=60),
}


def _ended(llm: LoraLLM, way: str, injector: Injector | None = None) -> BaseException | None:
    """The error of a call, None for an answer; the caller's thread ends within the bound."""
    error: list[BaseException] = []

    def ask() -> None:
        try:
            WAYS[way](llm)
        except BaseException as caught:
            error.append(caught)

    _wait_for_the_engine()
    caller = threading.Thread(target=ask, daemon=True)
    threading.settrace(injector)
    try:
        caller.start()
        caller.join(BOUND_S)
    finally:
        threading.settrace(None)
    assert not caller.is_alive(), f"the caller waits for ever: {injector and injector.places[-3:]}"
    _wait_for_the_engine()
    return error[0] if error else None


def _wait_for_the_engine() -> None:
    """Wait until no engine's thread is left, so that the next call starts one that is traced."""
    deadline = time.monotonic() + BOUND_S
    while any(thread.name == "local-model" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "the engine's thread does not end"
        time.sleep(0.001)


@pytest.fixture(scope="module")
def llm(tiny_llama: Path) -> Iterator[LoraLLM]:
    made = LoraLLM(base_model=str(tiny_llama), max_new_tokens=8)
    for way in WAYS:  # compiles the grammar and fills the caches
        assert _ended(made, way) is None
    yield made
    # Interrupted loops leave futures that nobody asked: asyncio logs them when they are collected, and the traceback
    # of that log is parsed, which makes any ``ast.parse`` that the collection interrupts fail (CPython #106905).
    gc.collect()


def _calls(llm: LoraLLM, way: str) -> list[str]:
    injector = Injector(None, RuntimeError)
    _ended(llm, way, injector)
    return injector.places


def _inject(llm: LoraLLM, way: str, at: int, kind: type[BaseException]) -> bool:
    """Whether the call was reached and made to fail."""
    injector = Injector(at, kind)
    _ended(llm, way, injector)
    return len(injector.places) > at


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("way", WAYS)
def test_a_fault_at_the_first_call_of_every_function_ends_the_call(llm: LoraLLM, way: str) -> None:
    called = _calls(llm, way)
    firsts = {place: called.index(place) for place in called}
    failed = {
        place
        for number, (place, at) in enumerate(firsts.items())
        if _inject(llm, way, at, KINDS[number % len(KINDS)])
    }
    assert len(failed) > 0.8 * len(firsts), "nearly every function was made to fail"
    assert {"engine.py:_join", "engine.py:_step", "decoders.py:join"} <= failed
    assert ("grammar.py:append" in failed) == (way == "structured")
    assert {"streaming.py:put", "streaming.py:<lambda>"} & failed or "stream" not in way
    assert _ended(llm, way) is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_a_fault_of_each_kind_at_every_single_call_ends_the_call(
    llm: LoraLLM, way: str, kind: type[BaseException]
) -> None:
    count = len(_calls(llm, way))
    failed = sum(_inject(llm, way, at, kind) for at in range(count))
    assert failed > 0.8 * count
    assert _ended(llm, way) is None
