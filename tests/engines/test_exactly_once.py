"""One job for one run after any fault: refused, lost and truncated replies, and killed processes."""

from __future__ import annotations

import contextlib
import errno
import itertools
import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from llama_index_finetune_structured.engines.hosted.engine import OpenAIFinetuneEngine
from llama_index_finetune_structured.engines.hosted.journal import RunJournal
from llama_index_finetune_structured.engines.timeouts import Timeouts
from llama_index_finetune_structured.errors import EngineError
from tests.engines.submitting import engine_at, submit, submit_and_wait
from tests.fakes.clock import FakeClock
from tests.fakes.loopback import LoopbackServer, Reply
from tests.fakes.openai_server import OpenAIServer
from tests.fakes.rows import write_rows

JOBS = "/v1/fine_tuning/jobs"
FILES = "/v1/files"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "train.jsonl")


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.engines.submitting", "openai.resources.fine_tuning.jobs"])
    return context


def engine(server: OpenAIServer, data: Path, output_dir: Path, **options: Any) -> OpenAIFinetuneEngine:
    given: dict[str, Any] = {"timeouts": Timeouts(clock=FakeClock(), request_s=20)} | options
    return OpenAIFinetuneEngine(
        "gpt-4o-mini",
        data,
        api_base=server.base,
        api_key=server.key,
        output_dir=output_dir,
        **given,
    )


def asks() -> Any:
    return pytest.raises(EngineError, match="whether the job was made is unknown")


def answer_to(server: OpenAIServer) -> dict[str, Any]:
    """What a user does who looks at the provider's page: follow the job that is there, else ask for one again."""
    return {"start_job_id": next(iter(server.jobs))} if server.jobs else {"resubmit": True}


def reply(status: int, message: str = "injected", code: str | None = None, **headers: str) -> Reply:
    return Reply(status, {"error": {"message": message, "code": code, "type": None}}, headers=headers)


NOT_READY = "File 'file-1' is still being processed and is not ready to be used for fine-tuning."

# (accepted before it goes wrong, how it goes wrong, with which reply)
LOST = [
    *[
        (accepted, kind, None)
        for accepted in (True, False)
        for kind in ("reset", "truncate", "garbage", "html")
    ],
    *[(accepted, "reply", reply(s)) for accepted in (True, False) for s in (500, 502, 503, 504, 408, 409)],
    (True, "reply", Reply(500, {"error": {}})),
    (True, "reply", Reply(503, b"<html>busy</html>", "text/html")),
    (False, "reply", reply(429, "slow down", "rate_limit_exceeded", **{"retry-after": "3"})),
    (False, "reply", reply(400, NOT_READY)),
]
TIMES = (1, 3)
METADATA = (True, False)
FAULTS = [(*lost, times, keeps) for lost, times, keeps in itertools.product(LOST, TIMES, METADATA)]
# half of them in the ordinary run: the rest only repeats the fault
CASES = [pytest.param(*f, marks=[pytest.mark.slow] if f[3] > 1 else []) for f in FAULTS]


def test_there_are_enough_faults_and_a_third_come_after_acceptance() -> None:
    assert len(FAULTS) + KILLS >= 100
    assert sum(fault[0] for fault in FAULTS) * 3 >= len(FAULTS)


@pytest.mark.parametrize(("accepted", "kind", "answer", "times", "keeps_metadata"), CASES)
def test_a_fault_in_submitting_makes_one_job(
    accepted: bool,
    kind: str,
    answer: Reply | None,
    times: int,
    keeps_metadata: bool,
    data: Path,
    tmp_path: Path,
) -> None:
    with OpenAIServer(keeps_metadata=keeps_metadata) as server:
        server.fault("POST", JOBS, kind, accepted=accepted, reply=answer, times=times)
        asked = engine(server, data, tmp_path / "run")
        is_refused = answer is not None and answer.status in (400, 429)
        if is_refused or (accepted and keeps_metadata):
            asked.finetune()
        else:
            with asks():
                asked.finetune()
            server.faults.clear()
            asked = engine(server, data, tmp_path / "run", **answer_to(server))
            asked.finetune()
        asked.wait()
        assert len(server.jobs) == len(server.files) == 1
        assert len(server.calls("POST", JOBS)) == (1 if accepted else times + 1 if is_refused else 2)


@pytest.mark.parametrize("method_path", [("GET", JOBS), ("GET", FILES), ("POST", FILES)])
@pytest.mark.parametrize("kind", ["reset", "truncate", "garbage", "html", "reply"])
def test_a_fault_around_submitting_makes_one_job(
    method_path: tuple[str, str], kind: str, data: Path, tmp_path: Path
) -> None:
    with OpenAIServer() as server:
        server.fault(*method_path, kind, accepted=True, times=3)
        engine(server, data, tmp_path / "run").finetune()
        assert len(server.jobs) == len(server.files) == 1


def test_a_job_that_shows_up_late_is_still_found(data: Path, tmp_path: Path) -> None:
    class Slow(OpenAIServer):
        hidden = 5

        def _list_jobs(self, request: Any) -> Reply:
            listed = super()._list_jobs(request)
            if self.jobs and self.hidden:
                self.hidden -= 1
                return Reply(200, listed.body | {"data": [], "has_more": False})
            return listed

    with Slow() as server:
        server.fault("POST", JOBS, "reset", accepted=True)
        engine(server, data, tmp_path / "run").finetune()
        assert len(server.jobs) == 1


@pytest.mark.parametrize("accepted", [True, False])
def test_a_reply_that_takes_too_long_makes_one_job(accepted: bool, data: Path, tmp_path: Path) -> None:
    with OpenAIServer() as server:
        server.fault("POST", JOBS, "hang", accepted=accepted)
        asked = engine(
            server, data, tmp_path / "r", timeouts=Timeouts(clock=FakeClock(), request_s=0.5), resubmit=True
        )
        if not accepted:
            with asks():
                asked.finetune()
            asked = engine(server, data, tmp_path / "r", resubmit=True)
        asked.finetune()
        assert len(server.jobs) == 1


@pytest.mark.parametrize("at", range(1, 6))
def test_a_disk_that_fails_at_any_write_makes_one_job(
    at: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = os.replace, 0

    def failing(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == at:
            raise OSError(errno.ENOSPC, "no space left on device")
        real(*arguments)

    with OpenAIServer() as server:
        monkeypatch.setattr(os, "replace", failing)
        with contextlib.suppress(OSError):
            engine(server, data, tmp_path / "run").finetune()
        monkeypatch.setattr(os, "replace", real)
        assert count >= min(at, 4)
        engine(server, data, tmp_path / "run").finetune()
        assert len(server.jobs) == len(server.files) == 1


def test_two_machines_at_the_same_moment_keep_one_job(data: Path, tmp_path: Path) -> None:
    class Racing(OpenAIServer):
        def _create_job(self, request: Any) -> Reply:
            if not self.jobs:
                self._new_job(request.json())  # the other machine's, a moment earlier
            return super()._create_job(request)

    with Racing() as server:
        asked = engine(server, data, tmp_path / "run")
        asked.finetune()
        assert asked.get_current_job().id == next(iter(server.jobs))
        assert [job["status"] for job in server.jobs.values()].count("cancelled") == 1


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (reply(400, "invalid model", "invalid_request_error"), "invalid model"),
        (reply(400, "Invalid file format: line 3", "invalid_file_format"), "Fix the training file"),
        (reply(401, "Incorrect API key provided", "invalid_api_key"), "Check the key"),
        (reply(403, "Your organization is not permitted to create fine-tuning jobs"), "LoraFinetuneEngine"),
        (reply(403, "Fine-tuning is no longer available"), "LoraFinetuneEngine"),
        (reply(404, "The model does not exist", "model_not_found"), "Check base_model"),
        (reply(429, "You exceeded your current quota", "insufficient_quota"), "Add credit"),
        (reply(413, "too large"), "too large"),
        (reply(422, "unprocessable"), "unprocessable"),
        (Reply(400, {"error": {}}), "no message"),
        (Reply(400, {"detail": "nope"}), "nope"),
        (Reply(400, b"plain words", "text/plain"), "plain words"),
    ],
)
def test_a_permanent_refusal_costs_one_call_and_is_explained(
    answer: Reply, says: str, data: Path, tmp_path: Path
) -> None:
    with OpenAIServer() as server:
        server.fault("POST", JOBS, "reply", reply=answer, times=99)
        asked = engine(server, data, tmp_path / "run")
        with pytest.raises(EngineError, match=says):
            asked.finetune()
        assert len(server.calls("POST", JOBS)) == 1
        assert RunJournal(tmp_path / "run").require().phase == "refused"
        server.faults.clear()
        asked.finetune()
        assert len(server.jobs) == 1


def test_a_rate_limit_waits_as_long_as_it_says(data: Path) -> None:
    with OpenAIServer() as server:
        limited = reply(429, "slow down", "rate_limit_exceeded", **{"retry-after": "17"})
        server.fault("POST", JOBS, "reply", reply=limited, times=2)
        clock = FakeClock()
        OpenAIFinetuneEngine(
            "gpt-4o-mini", data, api_base=server.base, api_key=server.key, timeouts=Timeouts(clock=clock)
        ).finetune()
        assert clock.sleeps == [17, 17]


def test_a_request_of_unknown_outcome_is_sent_again_only_on_the_users_word(
    data: Path, tmp_path: Path
) -> None:
    with OpenAIServer() as server:
        server.fault("POST", JOBS, "reply", reply=reply(500), times=10_000)
        asked = engine(server, data, tmp_path / "run")
        for _ in range(2):
            with pytest.raises(EngineError, match=r"HTTP 500(.|\n)*resubmit=True"):
                asked.finetune()
        assert len(server.calls("POST", JOBS)) == 1
        assert RunJournal(tmp_path / "run").require().phase == "submitting"
        server.faults.clear()
        engine(server, data, tmp_path / "run", resubmit=True).finetune()
        assert len(server.jobs) == 1


def test_a_provider_that_is_not_reached_is_asked_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was sent, so nothing is unclear."""
    with OpenAIServer() as server:
        asked = engine(server, data, tmp_path / "run")
        jobs = asked._service.client.fine_tuning.jobs
        real, failures = jobs.create, iter([httpx.ConnectError("refused"), httpx.ConnectTimeout("no answer")])

        def create(**body: Any) -> Any:
            for failure in failures:
                raise openai.APIConnectionError(request=httpx.Request("POST", server.base)) from failure
            return real(**body)

        monkeypatch.setattr(jobs, "create", create)
        asked.finetune()
        assert len(server.jobs) == 1


def test_a_file_is_waited_for_then_the_job_is_asked_for(data: Path, tmp_path: Path) -> None:
    with OpenAIServer(file_statuses=("uploaded", "uploaded", "uploaded", "processed")) as server:
        engine(server, data, tmp_path / "run").finetune()
        assert len(server.calls("POST", JOBS)) == 1


def test_a_file_that_stays_unready_is_bounded(data: Path, tmp_path: Path) -> None:
    with OpenAIServer(file_statuses=("uploaded",)) as server:
        asked = engine(server, data, tmp_path / "run")
        with pytest.raises(EngineError, match="still being processed"):
            asked.finetune()
        assert server.jobs == {}


def test_a_refused_file_tells_the_providers_words(data: Path, tmp_path: Path) -> None:
    with (
        OpenAIServer(file_statuses=("uploaded", "error")) as server,
        pytest.raises(EngineError, match="line 3 is not JSON"),
    ):
        engine(server, data, tmp_path / "run").finetune()


# -- killed processes --

KILLS = 24
_MOMENTS = [("POST", JOBS, True), ("POST", JOBS, False), ("POST", FILES, True), ("GET", JOBS, False)]


def killed_at(server: LoopbackServer, moment: tuple[str, str, bool], process: Any) -> None:
    method, path, accepted = moment
    fault = server.fault(method, path, "hang", accepted=accepted)
    process.start()
    assert fault.seen.wait(30)
    process.kill()
    process.join()
    fault.release.set()


@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_submission_makes_one_job(
    number: int, data: Path, tmp_path: Path, processes: ForkServerContext
) -> None:
    with OpenAIServer() as server:
        arguments = (server.base, server.key, data, tmp_path / "run")
        moment = _MOMENTS[number % len(_MOMENTS)]
        killed_at(server, moment, processes.Process(target=submit, args=arguments))
        again = engine_at(*arguments)
        if moment == ("POST", JOBS, False):
            with asks():
                again.finetune()
            again = engine(server, data, tmp_path / "run", **answer_to(server))
        again.finetune()
        assert len(server.jobs) == len(server.files) == 1


@pytest.fixture
def endless() -> Iterator[OpenAIServer]:
    with OpenAIServer(script=("queued", *["running"] * 100_000)) as server:
        yield server


def test_fifty_killed_waits_are_all_taken_up_again(
    endless: OpenAIServer, data: Path, tmp_path: Path, processes: ForkServerContext
) -> None:
    for number in range(50):
        output_dir = tmp_path / f"run{number % 5}"
        arguments = (endless.base, endless.key, data, output_dir)
        moment = ("GET", rf"{JOBS}/[^/]+", bool(number % 2))
        killed_at(endless, moment, processes.Process(target=submit_and_wait, args=arguments))
        attached = OpenAIFinetuneEngine.from_run(output_dir, api_key=endless.key)
        assert attached.get_current_job().id == RunJournal(output_dir).require().job_id
    assert len(endless.jobs) == 5


def test_two_processes_on_one_run_submit_once(
    data: Path, tmp_path: Path, processes: ForkServerContext
) -> None:
    with OpenAIServer() as server:
        arguments = (server.base, server.key, data, tmp_path / "run")
        both = [processes.Process(target=submit, args=arguments) for _ in range(3)]
        for process in both:
            process.start()
        for process in both:
            process.join(60)
        assert [process.exitcode for process in both] == [0, 0, 0]
        assert len(server.jobs) == 1
