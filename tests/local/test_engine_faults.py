"""Every caller of the generation engine gets an answer or an error, whatever fails and wherever it is forked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from llama_index_finetune_structured import LoraLLM
from llama_index_finetune_structured.local.generate import decoders
from llama_index_finetune_structured.local.generate.engine import GenerationEngine
from llama_index_finetune_structured.local.generate.kv_cache import KeyValues, KVCacheModel
from llama_index_finetune_structured.local.generate.prefix_cache import PrefixCache
from llama_index_finetune_structured.local.generate.request import (
    GenerationRequest,
    GenerationResult,
    Sampling,
)
from llama_index_finetune_structured.local.generate.sequence import GeneratedSequence
from tests import tiny

BOUND_S = 60  # a wait for ever, also on a busy machine
FOLDER = str(Path(decoders.__file__).parent)


@pytest.fixture
def engine() -> Iterator[GenerationEngine]:
    made = GenerationEngine(tiny.model("llama"), stop_ids=[1], pad_id=1, batch_size=2)
    yield made
    assert _answers(made) == 3, "the engine answers after every fault"


def _submitted(engine: GenerationEngine, count: int = 3) -> list[Future[GenerationResult]]:
    return [engine.submit(GenerationRequest((0, 70 + n, 80), 6)) for n in range(count)]


def _ended(futures: list[Future[GenerationResult]]) -> list[BaseException | None]:
    """The error of each future, None for an answer; all within the bound."""
    assert not wait(futures, timeout=BOUND_S).not_done, "a caller waits for ever"
    return [future.exception() for future in futures]


def _wait_for_the_thread(engine: GenerationEngine) -> None:
    """Wait until the engine's thread has ended, so that the next request starts another."""
    deadline = time.monotonic() + BOUND_S
    while (thread := engine._thread) is not None and thread.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def _answers(engine: GenerationEngine) -> int:
    return sum(error is None for error in _ended(_submitted(engine)))


class Injected(Exception):
    pass


class _Injector:
    """Raises at the n-th function call of the engine's thread inside the engine's folder; records all calls."""

    def __init__(self, at: int | None = None) -> None:
        self._at, self.places = at, list[str]()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        # Without the functions that end what everything below them left open.
        if code.co_filename.startswith(FOLDER) and code.co_name not in ("_work", "_end", "_fail"):
            self.places.append(f"{Path(code.co_filename).name}:{code.co_name}")
            if len(self.places) - 1 == self._at:
                raise Injected(self.places[-1])


def _traced(engine: GenerationEngine, injector: _Injector) -> list[str]:
    """Places of the calls that the engine's thread made for three requests, which have all ended."""
    _wait_for_the_thread(engine)
    threading.settrace(injector)
    try:
        futures = _submitted(engine)
    finally:
        threading.settrace(None)
    _ended(futures)
    _wait_for_the_thread(engine)
    return injector.places


def test_an_exception_at_any_call_of_the_engines_thread_leaves_no_caller_waiting() -> None:
    engine = GenerationEngine(tiny.model("llama"), stop_ids=[1], pad_id=1, batch_size=2)
    _answers(engine)
    called = _traced(engine, _Injector())
    firsts = {place: called.index(place) for place in called}
    lasts = {place: len(called) - 1 - called[::-1].index(place) for place in called}
    failed = set[str]()
    for at in sorted({*firsts.values(), *lasts.values()}):
        injector = _Injector(at)
        if len(_traced(engine, injector)) > at:
            failed.add(injector.places[at])
        assert at % 5 or _answers(engine) == 3
    assert _answers(engine) == 3
    assert {"engine.py:_clear", "decoders.py:join", "decoders.py:step", "prefix_cache.py:find"} <= failed
    assert len(failed) > 0.8 * len(firsts), "nearly every function was made to fail"


def _failing(*_: Any, **__: Any) -> Any:
    raise Injected


SEAMS: list[tuple[Any, str]] = [
    (decoders.BatchDecoder, "step"),
    (decoders.BatchDecoder, "clear"),
    (decoders.BatchDecoder, "join"),
    (KVCacheModel, "release"),
    (KVCacheModel, "extend"),
    (KVCacheModel, "prefill"),
    (KVCacheModel, "save"),
    (KVCacheModel, "move"),
    (PrefixCache, "find"),
    (PrefixCache, "add"),
    (PrefixCache, "_evict"),
    (GeneratedSequence, "draft"),
    (GeneratedSequence, "choose"),
    (GeneratedSequence, "append"),
    (GenerationEngine, "_is_done"),
    (GenerationEngine, "_next"),
    (threading.Thread, "start"),
]


@pytest.mark.parametrize(("owner", "name"), SEAMS, ids=lambda part: getattr(part, "__name__", part))
def test_a_part_that_fails_always_leaves_no_caller_waiting(
    engine: GenerationEngine, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, _failing)
        _ended(_submitted(engine))


@pytest.mark.parametrize("name", ["find", "add", "_evict"])
def test_a_failing_prefix_cache_fails_no_request(
    engine: GenerationEngine, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(PrefixCache, name, _failing)
        assert _answers(engine) == 3


def test_both_a_failing_step_and_its_failing_cleanup_end_in_errors(
    engine: GenerationEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(decoders.BatchDecoder, "step", _failing)
        patched.setattr(KVCacheModel, "release", _failing)
        assert {type(error) for error in _ended(_submitted(engine))} == {Injected}


class _BrokenGrammar:
    """A grammar that fails after a few tokens."""

    def __init__(self) -> None:
        self.answers = self
        self._length = 0

    def require_room(self, _: int) -> None:
        pass

    def within_limit(self, token: int) -> int:
        return token

    def start(self, _: int) -> _BrokenGrammar:
        return self

    def draft(self, _: Any) -> tuple[int, list[int]]:
        return 0, []

    def allowed_start(self, tokens: list[int]) -> list[int]:
        return tokens

    def forced(self) -> list[int]:
        return []

    def append(self, _: int) -> None:
        self._length += 1

    def allows(self, _: int) -> bool:
        if self._length > 2:
            raise Injected
        return True


def _refuse(_: int) -> None:
    raise Injected


BROKEN: dict[str, Callable[[], GenerationRequest]] = {
    "grammar": lambda: GenerationRequest((0, 90), 6, grammar=_BrokenGrammar()),  # type: ignore[arg-type]
    "sampling": lambda: GenerationRequest((0, 90), 6, sampling=Sampling(temperature=1.0, top_k=-5)),
    "reader": lambda: GenerationRequest((0, 90), 6, on_token=_refuse),
    "token": lambda: GenerationRequest((0, 99_999), 6),
}


@pytest.mark.parametrize("slots", [True, False], ids=["slots", "padded"])
@pytest.mark.parametrize("what", BROKEN)
def test_a_request_that_fails_by_itself_leaves_the_others_of_its_batch_alone(what: str, slots: bool) -> None:
    model = tiny.model("llama")
    engine = GenerationEngine(model, stop_ids=[1], pad_id=1, batch_size=4)
    if not slots:
        if what == "token":
            pytest.skip("one forward of all prompts: the model itself fails")
        model.set_attn_implementation("sdpa")
        engine._decoder = decoders.PaddedDecoder(model, frozenset([1]), 1)
    first = engine.submit(GenerationRequest((0, 70), 6))
    broken = engine.submit(BROKEN[what]())
    last = engine.submit(GenerationRequest((0, 71), 6))
    errors = _ended([first, broken, last])
    assert errors[1] is not None
    assert errors[::2] == [None, None]
    alone = [
        _result(GenerationEngine(tiny.model("llama"), stop_ids=[1], pad_id=1, batch_size=1), n)
        for n in (70, 71)
    ]
    assert [first.result(), last.result()] == alone


def _result(engine: GenerationEngine, token: int) -> GenerationResult:
    return engine.submit(GenerationRequest((0, token), 6)).result(BOUND_S)


def test_a_thread_that_cannot_be_started_is_an_error_of_this_call_only(
    engine: GenerationEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        errors = _ended(_submitted(engine))
    assert [str(error) for error in errors] == ["can't start new thread"] * 3


def test_requests_at_the_moment_when_the_thread_ends_are_answered(engine: GenerationEngine) -> None:
    for n in range(60):
        future = engine.submit(GenerationRequest((0, 70), 1))
        assert future.result(BOUND_S)
        time.sleep(0.0001 * (n % 5))


def test_a_cancelled_request_in_the_queue_ends(engine: GenerationEngine) -> None:
    requests = [GenerationRequest((0, 70), 50) for _ in range(6)]
    for request in requests[2:]:
        request.cancelled = True
    futures = [engine.submit(request) for request in requests]
    assert not wait(futures, timeout=BOUND_S).not_done
    assert [future.cancelled() for future in futures] == [False, False, True, True, True, True]


def _zeros(start: int, stop: int) -> KeyValues:
    return [(torch.zeros(stop - start, 1, 1), torch.zeros(stop - start, 1, 1))]


def test_a_growing_prompt_of_any_length_is_evicted() -> None:
    cache = PrefixCache(limit_bytes=8800)
    for n in range(1, 1200):
        cache.add(
            list(range(n)),
            _zeros,
        )
    assert cache.bytes <= 8800
    assert sum(part[0][0].shape[0] for part in cache.find(list(range(1100)))) == 1099


# Forks


def _child(work: Callable[[], object]) -> int:
    """Fork; the exit status of a child that does ``work`` within the bound."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(BOUND_S)
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("structured", [False, True])
def test_a_child_that_is_forked_during_a_generation_answers(tiny_llama: Path, structured: bool) -> None:
    llm = LoraLLM(base_model=str(tiny_llama), max_new_tokens=40)
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    keywords: dict[str, Any] = (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "A", "schema": schema}}}
        if structured
        else {}
    )
    expected = llm.complete("y", **keywords).text
    stop = threading.Event()

    def ask() -> None:
        number = 0
        while not stop.is_set():
            llm.complete(f"x{number}", temperature=1.0, **keywords)
            number += 1

    def answer() -> None:
        assert llm.complete("y", **keywords).text == expected

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for n in range(8):
            time.sleep(0.05 + 0.013 * n)
            assert _child(answer) == 0, f"child {n}"
    finally:
        stop.set()
        thread.join()
    assert llm.complete("y", **keywords).text == expected, "the parent goes on"


FORKED = """
import os, sys
from llama_index_finetune_structured.background import run_in_background

async def answer():
    return 7

assert run_in_background(answer()) == 7
pid = os.fork()
assert run_in_background(answer()) == 7
if pid == 0:
    sys.exit(0)  # in order, with the functions that atexit calls
assert os.waitpid(pid, 0)[1] == 0
assert run_in_background(answer()) == 7
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_stream_of_the_parent_ends_with_an_error_in_a_forked_child(tiny_llama: Path) -> None:
    llm = LoraLLM(base_model=str(tiny_llama), max_new_tokens=1500)
    stream = llm.stream_complete("x")
    next(stream)
    if not (child := os.fork()):
        signal.alarm(BOUND_S)
        try:
            list(stream)
        except BaseException as error:
            os._exit(0 if "forked during this answer" in str(error) else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert list(stream)[-1].raw["usage"]["completion_tokens"] > 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_childs_event_loop_is_its_own_and_ends_without_touching_the_parents() -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


# The end of the interpreter

QUEUED = """
import threading, time
from llama_index_finetune_structured.local.generate.engine import GenerationEngine
from llama_index_finetune_structured.local.generate.request import GenerationRequest
from tests import tiny
engine = GenerationEngine(tiny.model("llama"), stop_ids=[1], pad_id=1, batch_size=1)
errors = []
futures = [engine.submit(GenerationRequest((0, 70), 4000)) for _ in range(200)]
for future in futures:
    future.add_done_callback(lambda future: errors.append(future.exception()))
{ending}
"""
ABANDONED = """
import atexit
atexit.register(lambda: print(len(errors), errors[-1], flush=True))
"""
WAITED_FOR = """
def wait():
    time.sleep(1)
    assert engine.submit(GenerationRequest((0, 70), 3)).result()
    print("answered", flush=True)

for future in futures[1:]:
    future.cancel()
threading.Thread(target=wait).start()
"""


def _script(ending: str) -> tuple[str, float]:
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", QUEUED.format(ending=ending)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    return ended.stdout, time.monotonic() - started


def test_calls_that_nobody_can_wait_for_do_not_keep_the_interpreter_from_ending() -> None:
    told, seconds = _script(ABANDONED)
    assert told.startswith("200 the interpreter is shutting down")
    assert seconds < 60  # 200 answers of 4,000 tokens take minutes


def test_a_thread_that_still_works_after_the_main_thread_gets_its_answers() -> None:
    assert _script(WAITED_FOR)[0] == "answered\n"
