"""Polling a job to its end over real HTTP with the real SDK: success, failure, timeouts, cancelling."""

from __future__ import annotations

from typing import Any

import pytest

from llama_index_finetune_structured.engines.hosted.follow import follow
from llama_index_finetune_structured.engines.hosted.journal import RunJournal
from llama_index_finetune_structured.engines.hosted.progress import Progress
from llama_index_finetune_structured.engines.timeouts import Timeouts
from llama_index_finetune_structured.errors import (
    EngineError,
)
from tests.fakes.clock import FakeClock
from tests.fakes.loopback import Reply
from tests.fakes.openai_server import OpenAIServer

JOBS = r"/v1/fine_tuning/jobs"
JOB = r"/v1/fine_tuning/jobs/[^/]+"


def test_nothing_is_followed_before_it_is_submitted(make: Any) -> None:
    for call in (
        make().get_current_job,
        make().get_finetuned_model,
        make().wait,
        make().cancel,
        make().metrics,
    ):
        with pytest.raises(EngineError, match=r"call finetune\(\) first"):
            call()


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_a_job_that_did_not_succeed_is_never_a_model(status: str, make: Any, server: OpenAIServer) -> None:
    server.script = ("queued", "running", status)
    engine = make()
    engine.finetune()
    with pytest.raises(EngineError, match=status):
        engine.get_finetuned_model()
    with pytest.raises(EngineError, match=status):
        engine.wait()


def test_a_failed_job_tells_the_providers_reason(make: Any, server: OpenAIServer) -> None:
    server.script = ("queued", "failed")
    engine = make()
    engine.finetune()
    with pytest.raises(EngineError, match="invalid_training_file: bad row"):
        engine.wait()


def test_an_empty_error_object_is_no_crash(make: Any, server: OpenAIServer) -> None:
    server.script, server.job_error = ("queued", "failed"), {"x": 1}
    engine = make()
    engine.finetune()
    with pytest.raises(EngineError, match=r"failed\. Fix"):
        engine.wait()


def test_a_failed_job_is_submitted_anew(make: Any, server: OpenAIServer) -> None:
    server.script = ("queued", "failed")
    engine = make()
    engine.finetune()
    with pytest.raises(EngineError):
        engine.wait()
    server.script = ("queued", "succeeded")
    engine.finetune()
    assert engine.wait().id == list(server.jobs)[1]
    assert RunJournal(engine.output_dir).require().earlier_jobs == (next(iter(server.jobs)),)


def test_a_failed_job_is_submitted_anew_though_its_journal_is_lost(make: Any, server: OpenAIServer) -> None:
    server.script = ("queued", "failed")
    engine = make()
    engine.finetune()
    with pytest.raises(EngineError):
        engine.wait()
    for path in engine.output_dir.iterdir():
        path.unlink()
    server.script = ("queued", "succeeded")
    again = make()
    again.finetune()
    first, second = server.jobs
    assert again.wait().id == second
    assert RunJournal(again.output_dir).require().earlier_jobs == (first,)


def test_who_waits_for_a_job_leaves_the_journal_of_its_successor_alone(
    make: Any, server: OpenAIServer
) -> None:
    server.script = ("queued", "running", "failed")
    waiting = make()
    waiting.finetune()
    steps = follow(
        waiting._service, RunJournal(waiting.output_dir), 3600, Progress("x", verbose=False), needs_name=False
    )
    next(steps)
    (first,) = server.jobs
    server.scripts[first] = ["failed"]
    server.script = ("queued", "succeeded")
    make().finetune()  # another process sees the failure first, and submits anew
    second = RunJournal(waiting.output_dir).require()
    assert list(steps) == []
    assert RunJournal(waiting.output_dir).require() == second
    assert second.job_id == list(server.jobs)[1]


@pytest.mark.parametrize(
    "status", ["validating_files", "queued", "running", "paused", "pending", "Running", "a_new_status"]
)
def test_any_status_that_is_not_final_keeps_polling(
    status: str, make: Any, server: OpenAIServer, clock: FakeClock
) -> None:
    server.script = ("queued", *[status] * 6, "succeeded")
    engine = make()
    engine.finetune()
    assert engine.wait().status == "succeeded"
    assert clock.sleeps == [1, 2, 4, 8, 16, 30]


@pytest.mark.parametrize("status", ["Succeeded", "completed", "SUCCEEDED"])
def test_other_spellings_of_success_are_success(status: str, make: Any, server: OpenAIServer) -> None:
    server.script = ("queued", status)
    engine = make()
    engine.finetune()
    assert engine.get_finetuned_model().model.startswith("ft:")


@pytest.mark.parametrize("status", ["Failed", "canceled", "Cancelled", "error"])
def test_other_spellings_of_failure_are_failure(status: str, make: Any, server: OpenAIServer) -> None:
    server.script = ("queued", status)
    engine = make()
    engine.finetune()
    with pytest.raises(EngineError, match=status):
        engine.wait()


def test_waiting_ends_when_its_time_is_up(make: Any, server: OpenAIServer, clock: FakeClock) -> None:
    server.script = ("queued",)
    engine = make()
    engine.finetune()
    with pytest.raises(EngineError, match=r"still 'queued' after 100 s.*still running at the provider"):
        engine.wait(timeout_s=100)
    assert clock.time_s == 100


def test_the_default_wait_is_bounded_too(make: Any, server: OpenAIServer, clock: FakeClock) -> None:
    server.script = ("queued",)
    engine = make(timeouts=Timeouts(clock=clock, job_s=500))
    engine.finetune()
    with pytest.raises(EngineError, match="500 s"):
        engine.get_finetuned_model()


@pytest.mark.parametrize("kind", ["reset", "truncate", "garbage", "html", "reply"])
def test_polls_that_go_wrong_are_polled_again(kind: str, make: Any, server: OpenAIServer) -> None:
    engine = make()
    engine.finetune()
    server.fault("GET", JOB, kind, times=9)
    assert engine.wait().status == "succeeded"


def test_a_wrong_key_ends_the_wait_at_once(make: Any, server: OpenAIServer, clock: FakeClock) -> None:
    engine = make()
    engine.finetune()
    server.key = "sk-rotated"
    with pytest.raises(EngineError, match="invalid_api_key"):
        engine.wait()
    assert clock.sleeps == []


def test_a_job_without_events_is_followed_all_the_same(make: Any, server: OpenAIServer) -> None:
    server.fault("GET", f"{JOB}/events", "reply", reply=Reply(404, {"error": {}}), times=99)
    engine = make()
    engine.finetune()
    assert engine.wait().status == "succeeded"


def test_success_waits_for_the_models_name_but_not_for_ever(
    make: Any, server: OpenAIServer, clock: FakeClock
) -> None:
    server.names_model = False
    engine = make()
    engine.finetune()
    with pytest.raises(EngineError, match="named no model"):
        engine.get_finetuned_model()
    assert 300 <= clock.time_s < 400
    waited_s = clock.time_s
    assert engine.get_finetuned_model(model="ft:gpt-4o-mini:x").model == "ft:gpt-4o-mini:x"
    assert clock.time_s == waited_s


def test_a_failed_job_without_a_reason_is_explained_by_its_events(make: Any, server: OpenAIServer) -> None:
    class Telling(OpenAIServer):
        def _move(self, job: dict[str, Any], status: str) -> None:
            super()._move(job, status)
            if status == "failed":
                self._event(job["id"], "line 7 has no answer")
                self.events[job["id"]][0]["level"] = "error"
                job["error"] = None

    with Telling(script=("queued", "failed"), key=server.key) as telling:
        engine = make(telling)
        engine.finetune()
        with pytest.raises(EngineError, match="failed: line 7 has no answer"):
            engine.wait()


def test_replies_that_leave_out_what_the_description_requires_are_read(
    make: Any, server: OpenAIServer
) -> None:
    class Bare(OpenAIServer):
        def answer(self, request: Any) -> Reply:
            reply = super().answer(request)
            kept = ("id", "status", "fine_tuned_model", "filename", "object", "data")
            if isinstance(reply.body, dict) and reply.status == 200:
                bare = {key: value for key, value in reply.body.items() if key in kept}
                return Reply(200, bare | {"new_field": {"x": 1}})
            return reply

    with Bare(key=server.key) as bare:
        engine = make(bare)
        engine.finetune()
        assert engine.get_finetuned_model().model.startswith("ft:")
        assert len(bare.jobs) == 1


def test_metrics_are_one_row_a_step(make: Any) -> None:
    engine = make()
    engine.finetune()
    engine.wait()
    rows = engine.metrics()
    assert [row["step"] for row in rows] == [1, 2]
    assert [row["train_loss"] for row in rows] == [1, 0.5]


def test_the_bar_shows_step_and_loss(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    engine = make(verbose=True)
    engine.finetune()
    engine.wait()
    shown = capsys.readouterr().err
    assert "2/10" in shown
    assert "loss 0.500" in shown


def test_cancel_stops_the_job(make: Any) -> None:
    engine = make()
    engine.finetune()
    assert engine.cancel().status == "cancelled"
    with pytest.raises(EngineError, match="cancelled"):
        engine.get_finetuned_model()


def test_cancelling_a_finished_job_returns_it(make: Any) -> None:
    engine = make()
    engine.finetune()
    engine.wait()
    assert engine.cancel().status == "succeeded"


def test_a_job_that_cannot_be_cancelled_is_an_error(make: Any, server: OpenAIServer) -> None:
    engine = make()
    engine.finetune()
    refusal = Reply(403, {"error": {"message": "not yours", "code": "permission_denied"}})
    server.fault("POST", f"{JOB}/cancel", "reply", reply=refusal)
    with pytest.raises(EngineError, match="not yours"):
        engine.cancel()
