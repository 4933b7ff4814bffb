"""Replies of proxies and broken servers: every method raises one of the errors that its docstring names."""

from __future__ import annotations

import inspect
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama_index_finetune_structured import errors
from llama_index_finetune_structured.engines.gradient import GradientFinetuneEngine
from llama_index_finetune_structured.engines.hosted.engine import OpenAIFinetuneEngine
from llama_index_finetune_structured.engines.hosted.journal import (
    Run,
    RunJournal,
    attached_folder,
    list_runs,
)
from llama_index_finetune_structured.engines.timeouts import Timeouts
from tests.fakes.clock import FakeClock
from tests.fakes.gradient_server import SLUG, GradientServer
from tests.fakes.loopback import LoopbackServer, Reply, Request
from tests.fakes.openai_server import OpenAIServer

PAGE = b"<!doctype html><html><body>Sign in to the proxy</body></html>"
REPLIES = {
    "a page": Reply(200, PAGE, "text/html"),
    "a page called JSON": Reply(200, PAGE),
    "a page of an error": Reply(502, PAGE, "text/html"),
    "a page that forbids": Reply(403, PAGE, "text/html"),
    "nothing": Reply(200, b""),
    "null": Reply(200, None),
    "a number": Reply(200, 7),
    "a list": Reply(200, []),
    "an empty object": Reply(200, {}),
    "fields of other types": Reply(200, {"id": 7, "data": "x", "models": 3, "model": [], "status": {}}),
    "null fields": Reply(200, {"id": None, "data": None, "models": None, "model": None, "sumLoss": None}),
    "rows that are none": Reply(200, {"data": [None, 3, {}], "models": [None, {}], "has_more": False}),
    "not UTF-8": Reply(200, b"\xff\xfe{}"),
    "half of a reply": Reply(200, b'{"id": "x", "data": ['),
    "an error as text": Reply(400, "no"),
    "an error of other types": Reply(400, {"error": {"message": 7, "code": []}, "type": {}, "message": []}),
}


@pytest.fixture
def timeouts() -> Timeouts:
    return Timeouts(clock=FakeClock(), request_s=5, submit_s=20, settle_s=5, file_s=5, job_s=20)


def _documented(function: Callable[..., Any]) -> tuple[type[Exception], ...]:
    """The classes under ``Raises:`` in a docstring."""
    section = (inspect.getdoc(function) or "").partition("Raises:")[2]
    return tuple(getattr(errors, name) for name in re.findall(r"^ {4}(\w+):", section, re.MULTILINE))


def _replying(server: LoopbackServer, reply: Reply, start: int) -> None:
    """Let every reply from number ``start`` on be ``reply``."""
    numbers, proper = itertools.count(), server.answer

    def answer(request: Request) -> Reply:
        return reply if next(numbers) >= start else proper(request)

    server.answer = answer  # type: ignore[method-assign]


def _drive(make: Callable[[], Any], cls: type[Any], methods: list[str]) -> tuple[str, Exception | None]:
    """Create the engine and call its methods; the error, checked to be documented where it was raised."""
    step, error = _first_error(make, methods)
    if error is not None:
        allowed = _documented(cls if step == "__init__" else getattr(cls, step))
        assert isinstance(error, allowed), f"{cls.__name__}.{step} raised {error!r}, not documented there"
        assert str(error).strip()
        assert len(str(error)) < 2_000
    return step, error


def _first_error(make: Callable[[], Any], methods: list[str]) -> tuple[str, Exception | None]:
    step = "__init__"
    try:
        engine = make()
        for step in methods:
            getattr(engine, step)()
    except errors.FinetuneStructuredError as error:
        return step, error
    return step, None


@pytest.mark.parametrize("start", [0, 1, 3, 5, 7])
@pytest.mark.parametrize("reply", REPLIES.values(), ids=list(REPLIES))
def test_the_openai_engine_raises_documented_errors_only(
    reply: Reply, start: int, data: Path, timeouts: Timeouts
) -> None:
    with OpenAIServer() as server:
        _replying(server, reply, start)

        def make() -> OpenAIFinetuneEngine:
            return OpenAIFinetuneEngine(
                "gpt-4o-mini", data, api_base=server.base, api_key=server.key, timeouts=timeouts
            )

        methods = ["finetune", "get_current_job", "wait", "get_finetuned_model"]
        step, error = _drive(make, OpenAIFinetuneEngine, methods)
        if start == 0:
            assert (step, type(error)) == ("finetune", errors.EngineError)


@pytest.mark.parametrize("start", [0, 1, 3, 5])
@pytest.mark.parametrize("reply", REPLIES.values(), ids=list(REPLIES))
def test_the_gradient_engine_raises_documented_errors_only(
    reply: Reply, start: int, tmp_path: Path, timeouts: Timeouts
) -> None:
    samples = tmp_path / "samples.jsonl"
    samples.write_text("".join(json.dumps({"inputs": f"sample {n}"}) + "\n" for n in range(2)))
    with GradientServer() as server:
        _replying(server, reply, start)

        def make() -> GradientFinetuneEngine:
            return GradientFinetuneEngine(
                base_model_slug=SLUG, name="albums", data=samples, host=server.host,
                access_token=server.token, workspace_id=server.workspace, timeouts=timeouts,
            )  # fmt: skip

        step, error = _drive(
            make, GradientFinetuneEngine, ["finetune", "get_current_job", "get_finetuned_model"]
        )
        if start == 0:
            assert step == "__init__"
            assert error is not None


FIRST_PAGE = [{"id": f"x-{number}"} for number in range(3)]
NEXT_PAGES = {
    "null rows": Reply(200, {"data": [None], "has_more": False}),
    "numbers": Reply(200, {"data": [3], "has_more": False}),
    "rows without id": Reply(200, {"data": [{}], "has_more": False}),
    "text": Reply(200, {"data": "x", "has_more": False}),
    "null": Reply(200, {"data": None, "has_more": False}),
    "a page of a proxy": Reply(200, PAGE, "text/html"),
    "a bad gateway": Reply(502, PAGE, "text/html"),
    "the same page for ever": Reply(200, {"data": FIRST_PAGE, "has_more": True}),
}


@pytest.mark.parametrize("listing", ["files", "fine_tuning/jobs", "fine_tuning/jobs/[^/]+/events"])
@pytest.mark.parametrize("page", NEXT_PAGES.values(), ids=list(NEXT_PAGES))
def test_later_pages_of_a_listing_are_checked_and_end(
    listing: str, page: Reply, data: Path, timeouts: Timeouts
) -> None:
    with OpenAIServer() as server:
        proper = server.answer

        def answer(request: Request) -> Reply:
            if request.method != "GET" or not re.fullmatch(f".*/{listing}", request.path):
                return proper(request)
            return page if "after" in request.query else Reply(200, {"data": FIRST_PAGE, "has_more": True})

        server.answer = answer

        def make() -> OpenAIFinetuneEngine:
            return OpenAIFinetuneEngine(
                "gpt-4o-mini", data, api_base=server.base, api_key=server.key, timeouts=timeouts
            )

        step, error = _drive(make, OpenAIFinetuneEngine, ["finetune", "wait", "metrics"])
        if page is NEXT_PAGES["the same page for ever"]:
            assert error is None
        elif "events" not in listing:
            assert step == "finetune"


EVENTS: list[Any] = [
    None,
    {},
    {"message": "Step 1/2: training loss=1.2.3"},
    {"id": "e", "message": f"Step {'9' * 5000}/2: training loss=1"},
    {"id": "e", "data": {"step": float("nan"), "train_loss": 1}},
    {"id": ["e"], "level": "error", "message": None},
    {"id": "e", "data": {"step": -5, "total_steps": 0}},
]


@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_an_event_that_is_none_stops_nothing(event: Any, data: Path, timeouts: Timeouts) -> None:
    with OpenAIServer(script=("running", "failed")) as server:
        proper = server.answer
        reply = Reply(200, {"data": [event], "has_more": False})
        server.answer = lambda r: reply if r.path.endswith("/events") else proper(r)
        engine = OpenAIFinetuneEngine(
            "gpt-4o-mini", data, api_base=server.base, api_key=server.key, timeouts=timeouts
        )
        engine.finetune()
        assert isinstance(engine.metrics(), list)
        with pytest.raises(errors.EngineError, match="failed"):
            engine.wait()


@pytest.mark.parametrize("job_id", ["../../outside", "a/b", "x" * 300])
def test_an_attached_job_stays_inside_the_folder_of_runs(
    job_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_INDEX_FINETUNE_STRUCTURED_RUNS", str(tmp_path / "runs"))
    folder = attached_folder(job_id)
    assert folder.resolve().parent == tmp_path / "runs"
    folder.mkdir(parents=True)


def test_one_unreadable_journal_does_not_hide_the_others(tmp_path: Path) -> None:
    for name, content in (("bad", b"\xff\xfe"), ("good", None)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_bytes(content or b"")
    run = Run(engine="openai", provider="openai", api_base="b", base_model="m", data_path="d")
    RunJournal(tmp_path / "good").write(run)
    assert [folder.name for folder, _ in list_runs(tmp_path)] == ["good"]
