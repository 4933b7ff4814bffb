"""Whose job is it: only the run's key or the reply to its own request decide; everything else is a question."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llama_index_finetune_structured.cli import app
from llama_index_finetune_structured.engines.hosted.engine import OpenAIFinetuneEngine
from llama_index_finetune_structured.engines.hosted.journal import RunJournal, list_runs
from llama_index_finetune_structured.engines.timeouts import Timeouts
from llama_index_finetune_structured.errors import ConfigurationError, EngineError
from tests.fakes.clock import FakeClock
from tests.fakes.loopback import Reply, Request
from tests.fakes.openai_server import OpenAIServer

JOBS = "/v1/fine_tuning/jobs"
UNKNOWN = "whether the job was made is unknown"
SECRET = "wandb-5f0c0123456789abcdef"


@pytest.fixture
def dropping() -> Iterator[OpenAIServer]:
    with OpenAIServer(keeps_metadata=False) as running:
        yield running


def question(engine: OpenAIFinetuneEngine) -> str:
    with pytest.raises(EngineError, match=UNKNOWN) as caught:
        engine.finetune()
    return str(caught.value)


def strangers_job(server: OpenAIServer, **changes: Any) -> dict[str, Any]:
    """A job of somebody else with the file that was uploaded last."""
    body = {"model": "gpt-4o-mini", "training_file": list(server.files)[-1], "seed": 5} | changes
    return server._new_job(body)


# -- adoption --


def test_a_job_alike_in_everything_is_not_followed_without_the_key(make: Any, dropping: OpenAIServer) -> None:
    """Another machine may have asked for the same in the same minute."""
    dropping.fault("POST", JOBS, "reset")
    engine = make(dropping, seed=5)
    question(engine)
    theirs = strangers_job(dropping)
    assert f"{theirs['id']}: created 20" in question(engine)
    make(dropping, seed=5, resubmit=True).finetune()
    assert RunJournal(engine.output_dir).require().job_id == list(dropping.jobs)[1]
    assert theirs["status"] != "cancelled"


@pytest.mark.parametrize("other", [{"seed": 6}, {"model": "gpt-4o"}, {"validation_file": "file-9"}])
def test_jobs_with_other_settings_are_not_in_question(
    other: dict[str, Any], make: Any, dropping: OpenAIServer
) -> None:
    dropping.fault("POST", JOBS, "reset", accepted=True)
    engine = make(dropping, seed=5)
    question(engine)
    (own,) = dropping.jobs
    theirs = strangers_job(dropping, **other)
    asked = question(engine)
    assert f"start_job_id='{own}', output_dir='{engine.output_dir}'" in asked
    assert theirs["id"] not in asked


def test_jobs_from_before_the_request_and_of_other_journals_are_not_in_question(
    make: Any, dropping: OpenAIServer, tmp_path: Path
) -> None:
    make(dropping).finetune()
    make(dropping, output_dir=tmp_path / "runs" / "other").finetune()
    dropping.fault("POST", JOBS, "reset", accepted=True)
    engine = make(dropping, output_dir=tmp_path / "runs" / "third")
    asked = question(engine)
    first, second, third = dropping.jobs
    assert third in asked
    assert first not in asked
    assert second not in asked


def test_the_users_answer_is_followed_by_the_same_script(make: Any, dropping: OpenAIServer) -> None:
    dropping.fault("POST", JOBS, "reset", accepted=True)
    engine = make(dropping)
    question(engine)
    (job_id,) = dropping.jobs
    make(dropping, start_job_id=job_id, output_dir=engine.output_dir)
    again = make(dropping)
    again.finetune()
    assert again.wait().id == job_id
    assert len(dropping.jobs) == 1


def test_resubmit_sends_nothing_where_nothing_is_in_question(make: Any, server: OpenAIServer) -> None:
    for _ in range(2):
        make(resubmit=True).finetune()
    assert len(server.calls("POST", JOBS)) == 1


def test_a_question_stays_in_the_list_of_runs(make: Any, server: OpenAIServer) -> None:
    server.fault("POST", JOBS, "reset")
    question(make())
    shown = CliRunner().invoke(app, ["jobs", "list"], env={"COLUMNS": "200"}).stdout
    assert "submitting" in shown
    assert "APIConnectionError" in shown


# -- late and old jobs --


def test_a_job_that_is_listed_after_the_search_makes_no_second_one(make: Any, clock: FakeClock) -> None:
    class Slow(OpenAIServer):
        def _list_jobs(self, request: Request) -> Reply:
            listed = super()._list_jobs(request)
            return listed if clock.time_s > 90 else Reply(200, {"data": [], "has_more": False})

    with Slow() as slow:
        slow.fault("POST", JOBS, "reset", accepted=True)
        engine = make(slow)
        question(engine)
        clock.time_s = 100
        engine.finetune()
        assert RunJournal(engine.output_dir).require().job_id == next(iter(slow.jobs))
        assert len(slow.jobs) == 1


@pytest.mark.parametrize("status", ["failed", "running"])
def test_a_job_of_an_earlier_request_that_surfaces(status: str, make: Any, server: OpenAIServer) -> None:
    """A failed one changes nothing; of two that run, the older is kept, on every machine."""
    server.fault("POST", JOBS, "reset", accepted=True)
    engine = make()
    hidden = server._list_jobs
    server._list_jobs = lambda request: Reply(200, {"data": [], "has_more": False})  # type: ignore[method-assign]
    question(engine)
    make(resubmit=True).finetune()
    server._list_jobs = hidden  # type: ignore[method-assign]
    first, second = server.jobs
    server.jobs[first]["status"] = status
    server.scripts[first], server.scripts[second] = [], []
    make().finetune()
    kept = second if status == "failed" else first
    assert RunJournal(engine.output_dir).require().job_id == kept
    assert [key for key, job in server.jobs.items() if job["status"] == "cancelled"] == (
        [] if status == "failed" else [second]
    )


def test_a_duplicate_that_was_cancelled_elsewhere_is_not_replaced(make: Any, server: OpenAIServer) -> None:
    engine = make()
    engine.finetune()
    (own,) = server.jobs
    twin = server._new_job(server.calls("POST", JOBS)[0].json())  # of another machine, which keeps its own
    server.jobs[own]["status"] = "cancelled"
    server.scripts[own] = []
    engine.finetune()
    assert RunJournal(engine.output_dir).require().job_id == twin["id"]
    assert len(server.jobs) == 2


# -- replies with another job --


@pytest.mark.parametrize(
    "changes",
    [
        {"metadata": {"finetune_structured_run": f"{'0' * 32}-0"}},
        {"training_file": "file-999"},
        {"validation_file": "file-999"},
        {"user_provided_suffix": "others"},
        {"seed": 6},
        {"model": "gpt-4o"},
        {"hyperparameters": {"n_epochs": 9}},
    ],
    ids=lambda changes: next(iter(changes)),
)
@pytest.mark.parametrize("keeps_metadata", [True, False])
def test_a_reply_with_another_job_is_not_followed(
    changes: dict[str, Any], keeps_metadata: bool, make: Any
) -> None:
    class Mixing(OpenAIServer):
        def _create_job(self, request: Request) -> Reply:
            created = super()._create_job(request)
            theirs = created.body | {"id": "ftjob-theirs", "metadata": None} | changes
            return Reply(200, theirs)

    with Mixing(keeps_metadata=keeps_metadata) as mixing:
        engine = make(mixing, seed=5, hyperparameters={"n_epochs": 2}, suffix="mine")
        if keeps_metadata:
            engine.finetune()  # the run's own job is listed with its key
        else:
            assert "the reply describes the job of another request" in question(engine)
        assert RunJournal(engine.output_dir).require().job_id == (
            next(iter(mixing.jobs)) if keeps_metadata else None
        )


def test_a_reply_with_a_job_from_before_the_request_is_not_followed(
    make: Any, dropping: OpenAIServer, tmp_path: Path
) -> None:
    make(dropping).finetune()
    (old,) = dropping.jobs.values()
    dropping.fault("POST", JOBS, "reply", accepted=True, reply=Reply(200, old))
    assert "another request" in question(make(dropping, output_dir=tmp_path / "runs" / "other"))


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "gpt-4o-mini-2024-07-18"},
        {"hyperparameters": {"n_epochs": "auto"}},
        {"hyperparameters": None, "method": None, "seed": None},
        {"metadata": "none"},
        {"metadata": {"team": "x"}},
    ],
)
def test_a_reply_in_the_providers_own_words_is_followed(
    changes: dict[str, Any], make: Any, dropping: OpenAIServer
) -> None:
    create = dropping._create_job
    dropping._create_job = lambda request: Reply(200, create(request).body | changes)  # type: ignore[method-assign]
    engine = make(dropping, seed=5, hyperparameters={"n_epochs": 2})
    engine.finetune()
    assert engine.get_current_job().id == next(iter(dropping.jobs))


# -- journals --


def test_any_flipped_bit_of_a_journal_is_an_error_that_names_it_and_submits_nothing(
    make: Any, server: OpenAIServer
) -> None:
    server.fault("POST", JOBS, "reset")
    engine = make()
    question(engine)
    journal = RunJournal(engine.output_dir)
    content, run = journal.path.read_bytes(), journal.require()
    damaged = 0
    for at in range(len(content)):
        flipped = bytes([content[at] ^ (1 << at % 8)])
        journal.path.write_bytes(content[:at] + flipped + content[at + 1 :])
        try:
            assert journal.read() == run  # a blank between two fields
        except EngineError as error:
            damaged += 1
            message = str(error)
            assert message.startswith(f"{journal.path}: ")
    assert damaged > len(content) * 0.8
    with pytest.raises(EngineError, match=r"run\.json: .*start_job_id='\.\.\.'.*output_dir="):
        make(resubmit=True).finetune()
    assert len(server.calls("POST", JOBS)) == 1


def test_a_damaged_journal_is_named_where_runs_are_listed(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make().finetune()
    make(output_dir=tmp_path / "runs" / "other").finetune()
    path = tmp_path / "runs" / "other" / "run.json"
    path.write_text(path.read_text().replace('"attempt": 0', '"attempt": 1'))
    assert len(list_runs()) == 1
    assert f"left out: {path}: " in caplog.text
    assert "checksum" in caplog.text


# -- secrets --


def test_values_of_extra_body_are_in_no_file_and_no_output(
    server: OpenAIServer, make: Any, tmp_path: Path, timeouts: Timeouts
) -> None:
    server._job_problem = lambda body: None  # type: ignore[method-assign]
    engine = make(extra_body={"wandb": {"api_key": SECRET}, "tier": "standard"})
    engine.finetune()
    assert server.calls("POST", JOBS)[0].json()["wandb"] == {"api_key": SECRET}
    written = [path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert not [content for content in written if SECRET.encode() in content]
    for arguments in (["show", engine.output_dir.name], ["show", engine.output_dir.name, "--json"]):
        shown = CliRunner().invoke(app, ["jobs", *arguments], env={"COLUMNS": "300"}).stdout
        assert "wandb" in shown
        assert SECRET not in shown
    assert SECRET not in repr(engine._plan)
    attached = OpenAIFinetuneEngine.from_run(engine.output_dir, api_key=server.key, timeouts=timeouts)
    attached.finetune()
    assert len(server.jobs) == 1


@pytest.mark.parametrize("status", [400, 500])
def test_a_value_of_extra_body_that_a_provider_echoes_is_masked(
    status: int, make: Any, server: OpenAIServer
) -> None:
    echo = Reply(status, {"error": {"message": f"tier standard: no access with {SECRET}"}})
    server.fault("POST", JOBS, "reply", reply=echo)
    engine = make(extra_body={"wandb": [{"api_key": SECRET}], "tier": "standard"})
    with pytest.raises(EngineError, match=r"tier standard: no access with \[KEY\]") as caught:
        engine.finetune()
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert SECRET not in (engine.output_dir / "run.json").read_text()


def test_to_submit_again_from_a_journal_extra_body_must_be_passed(
    server: OpenAIServer, make: Any, timeouts: Timeouts
) -> None:
    server._job_problem = lambda body: None  # type: ignore[method-assign]
    server.script = ("queued", "failed")
    body = {"wandb": {"api_key": SECRET}}
    engine = make(extra_body=body)
    engine.finetune()
    given: dict[str, Any] = {"api_key": server.key, "timeouts": timeouts}
    OpenAIFinetuneEngine.from_run(engine.output_dir, **given).get_current_job()
    with pytest.raises(ConfigurationError, match="only hashes of wandb; to submit again, pass extra_body="):
        OpenAIFinetuneEngine.from_run(engine.output_dir, **given).finetune()
    OpenAIFinetuneEngine.from_run(engine.output_dir, **given, extra_body=body).finetune()
    assert [call.json()["wandb"] for call in server.calls("POST", JOBS)] == [body["wandb"]] * 2


def test_a_key_in_a_jobs_own_error_is_not_kept(make: Any, server: OpenAIServer) -> None:
    server.script = ("queued", "failed")
    server.job_error = {"code": "wandb", "message": f"no access with {server.key}", "param": None}
    engine = make()
    engine.finetune()
    with pytest.raises(EngineError, match=r"no access with \[KEY\]") as caught:
        engine.wait()
    assert server.key not in str(caught.value)
    assert server.key not in (engine.output_dir / "run.json").read_text()


# -- listings without an end --


@pytest.mark.parametrize("listing", ["files", "fine_tuning/jobs"])
def test_a_listing_without_an_end_is_left_after_some_pages(
    listing: str, make: Any, server: OpenAIServer
) -> None:
    proper, pages = server.answer, iter(range(10**9))

    def answer(request: Request) -> Reply:
        if request.method != "GET" or not request.path.endswith(listing):
            return proper(request)
        first = next(pages) * 100
        rows = [{"id": f"x-{first + number}", "status": "succeeded"} for number in range(100)]
        return Reply(200, {"object": "list", "data": rows, "has_more": True})

    server.answer = answer  # type: ignore[method-assign]
    make().finetune()
    assert len(server.jobs) == 1
    assert next(pages) < 250


def test_rows_that_repeat_on_several_pages_are_read_once(make: Any, server: OpenAIServer) -> None:
    """Pages of three jobs in rotation, each ending otherwise."""
    proper, pages = server.answer, iter(range(10**9))

    def answer(request: Request) -> Reply:
        if request.method != "GET" or request.path != JOBS:
            return proper(request)
        turn = next(pages) % 3
        rows = [{"id": f"x-{(number + turn) % 3}", "status": "succeeded"} for number in range(3)]
        return Reply(200, json.loads(json.dumps({"object": "list", "data": rows, "has_more": True})))

    server.answer = answer  # type: ignore[method-assign]
    make().finetune()
    assert len(server.jobs) == 1
    assert next(pages) < 20
