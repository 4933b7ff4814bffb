"""The OpenAI engine against a strict server over real HTTP, with the real SDK."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from llama_index.llms.openai import OpenAI

from llama_index_finetune_structured.engines.journal import Journal
from llama_index_finetune_structured.engines.openai import OpenAIFinetuneEngine
from llama_index_finetune_structured.engines.waits import Waits
from llama_index_finetune_structured.errors import (
    ConfigurationError,
    DatasetError,
    EngineError,
    MissingDependencyError,
)
from tests.fakes.clock import FakeClock
from tests.fakes.loopback import Reply
from tests.fakes.openai_server import OpenAIServer
from tests.fakes.rows import json_schema_row, prose_row, text_row, tools_row, write_rows

JOBS = r"/v1/fine_tuning/jobs"
JOB = r"/v1/fine_tuning/jobs/[^/]+"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "train.jsonl")


@pytest.fixture
def make(server: OpenAIServer, data: Path, waits: Waits) -> Any:
    def build(at: OpenAIServer = server, **options: Any) -> OpenAIFinetuneEngine:
        given = {"api_base": at.base, "api_key": at.key, "waits": waits, "data_path": data} | options
        return OpenAIFinetuneEngine("gpt-4o-mini", **given)

    return build


def test_a_job_goes_from_file_to_model(server: OpenAIServer, make: Any) -> None:
    engine = make()
    engine.finetune()
    assert engine.get_current_job().status == "queued"
    llm = engine.get_finetuned_model(temperature=0.3)
    (job,) = server.jobs.values()
    assert (llm.model, llm.temperature, llm.api_base) == (job["fine_tuned_model"], 0.3, server.base)
    assert isinstance(llm, OpenAI)
    assert all(refusal.startswith("GET /v1/models/") for refusal in server.refusals)


def test_finetune_returns_after_submission(server: OpenAIServer, make: Any, clock: FakeClock) -> None:
    make().finetune()
    assert [job["status"] for job in server.jobs.values()] == ["validating_files"]
    assert clock.sleeps == []


def test_settings_reach_the_provider(server: OpenAIServer, make: Any, tmp_path: Path) -> None:
    validation = write_rows(tmp_path / "validation.jsonl", count=11)
    make(hyperparameters={"n_epochs": 2}, suffix="albums", seed=5, validation_path=validation).finetune()
    body = server.calls("POST", JOBS)[0].json()
    assert body["method"] == {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}}
    assert (body["suffix"], body["seed"], body["validation_file"]) == ("albums", 5, "file-000002")


def test_the_same_script_again_attaches_to_its_job(server: OpenAIServer, make: Any) -> None:
    make().finetune()
    again = make()
    again.finetune()
    assert again.get_finetuned_model().model.endswith("ftjob-000002")
    assert len(server.jobs) == len(server.files) == 1


def test_a_new_process_needs_no_finetune_to_find_its_job(server: OpenAIServer, make: Any) -> None:
    make().finetune()
    assert make().get_current_job().id in server.jobs


def test_another_run_folder_trains_the_same_again_and_reuses_the_upload(
    server: OpenAIServer, make: Any, tmp_path: Path
) -> None:
    make().finetune()
    make(run_dir=tmp_path / "second").finetune()
    assert (len(server.jobs), len(server.files)) == (2, 1)


def test_other_data_is_another_run(server: OpenAIServer, make: Any, tmp_path: Path) -> None:
    make().finetune()
    make(data_path=write_rows(tmp_path / "more.jsonl", count=13)).finetune()
    assert (len(server.jobs), len(server.files)) == (2, 2)


def test_a_run_folder_refuses_another_request(make: Any, tmp_path: Path) -> None:
    make(run_dir=tmp_path / "run").finetune()
    with pytest.raises(ConfigurationError, match="holds another run"):
        make(run_dir=tmp_path / "run", seed=3).finetune()


def test_start_job_id_attaches_without_submitting(server: OpenAIServer, make: Any, tmp_path: Path) -> None:
    make(run_dir=tmp_path / "elsewhere").finetune()
    (job_id,) = server.jobs
    engine = make(start_job_id=job_id, run_dir=tmp_path / "here")
    engine.finetune()
    assert engine.get_finetuned_model().model.endswith(job_id)
    assert len(server.jobs) == 1


def test_from_run_needs_only_the_folder_and_a_key(server: OpenAIServer, make: Any, waits: Waits) -> None:
    first = make(hyperparameters={"n_epochs": 2})
    first.finetune()
    engine = OpenAIFinetuneEngine.from_run(first.run_dir, api_key=server.key, waits=waits)
    assert engine.wait().status == "succeeded"
    engine.finetune()
    assert len(server.jobs) == 1


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
    with pytest.raises(EngineError, match=r"failed\. Mend"):
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
    assert Journal(engine.run_dir).require().earlier_jobs == (next(iter(server.jobs)),)


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
    with pytest.raises(EngineError, match=r"still 'queued' after 100 s.*goes on at the provider"):
        engine.wait(timeout_s=100)
    assert clock.time_s == 100


def test_the_default_wait_is_bounded_too(make: Any, server: OpenAIServer, clock: FakeClock) -> None:
    server.script = ("queued",)
    engine = make(waits=Waits(clock=clock, job_s=500))
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


async def test_asyncio_does_the_same(make: Any) -> None:
    engine = make()
    await engine.afinetune()
    assert (await engine.aget_current_job()).status == "queued"
    llm = await engine.aget_finetuned_model()
    assert llm.model == (await engine.await_job()).fine_tuned_model
    assert len(await engine.ametrics()) == 2
    assert (await engine.acancel()).status == "succeeded"


@pytest.mark.parametrize(
    ("row", "transport", "sent"),
    [
        (tools_row, "tools", "tools"),
        (json_schema_row, "json_schema", "response_format"),
        (text_row, "text", None),
        (prose_row, None, "tools"),
    ],
)
def test_the_model_serves_with_the_transport_it_was_trained_in(
    row: Any, transport: str | None, sent: str | None, make: Any, server: OpenAIServer, tmp_path: Path
) -> None:
    from llama_index.core.prompts import PromptTemplate
    from pydantic import BaseModel

    class Album(BaseModel):
        name: str

    engine = make(data_path=write_rows(tmp_path / "rows.jsonl", row))
    engine.finetune()
    llm = engine.get_finetuned_model()
    assert llm.transport == transport
    assert llm.structured_predict(Album, PromptTemplate("Name one")) == Album(name="text")
    body = server.calls("POST", "/v1/chat/completions")[-1].json()
    assert {"tools", "response_format"} & set(body) == ({sent} if sent else set())


def test_an_unknown_models_llm_learns_its_window_from_the_server(
    server: OpenAIServer, data: Path, waits: Waits
) -> None:
    engine = OpenAIFinetuneEngine(
        "Qwen/Qwen3-4B", data, api_base=server.base, api_key=server.key, waits=waits
    )
    engine.finetune()
    engine.wait()
    server.models[engine.get_current_job().fine_tuned_model] = {"max_model_len": 32768}
    llm = engine.get_finetuned_model()
    assert type(llm).__name__ == "HostedOpenAILike"
    assert (llm.metadata.context_window, llm.metadata.is_function_calling_model) == (32768, True)


@pytest.mark.parametrize(
    "line",
    ["{oops", "[" * 50_000, "7", '{"messages": 1}', '{"messages": [1, 2]}', '{"messages": [], "tools": [1]}'],
    ids=lambda line: line[:20],
)
@pytest.mark.parametrize("first", [True, False])
def test_bad_data_is_refused_before_anything_is_sent(
    line: str, first: bool, make: Any, server: OpenAIServer, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    lines = [json.dumps(tools_row(1)), line]
    bad.write_text("\n".join(reversed(lines) if first else lines) + "\n")
    with pytest.raises(DatasetError, match=rf"bad\.jsonl:{1 if first else 2}: "):
        make(data_path=bad).finetune()
    assert server.exchanges == []


def test_the_data_may_be_anything_that_saves_itself(make: Any, server: OpenAIServer) -> None:
    class Rows:
        def save(self, path: Path, format: str | None = None) -> None:
            assert format == "openai"
            write_rows(Path(path))

    for _ in range(2):
        make(data_path=Rows()).finetune()
    assert (len(server.jobs), len(server.files)) == (1, 1)


def test_from_finetuning_handler_saves_and_trains(server: OpenAIServer, waits: Waits, tmp_path: Path) -> None:
    class Handler:
        def save_finetuning_events(self, path: str) -> None:
            write_rows(Path(path))

    engine = OpenAIFinetuneEngine.from_finetuning_handler(
        Handler(),
        "gpt-4o-mini",
        tmp_path / "out.jsonl",
        api_base=server.base,
        api_key=server.key,
        waits=waits,
    )
    engine.finetune()
    assert len(server.jobs) == 1


def test_the_environment_gives_key_and_address(
    server: OpenAIServer, data: Path, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match="set OPENAI_API_KEY"):
        OpenAIFinetuneEngine("gpt-4o-mini", data)
    monkeypatch.setenv("OPENAI_API_KEY", server.key)
    monkeypatch.setenv("OPENAI_API_BASE", server.base)
    OpenAIFinetuneEngine("gpt-4o-mini", data, waits=waits).finetune()
    assert len(server.jobs) == 1


def test_a_job_that_cannot_be_cancelled_is_an_error(make: Any, server: OpenAIServer) -> None:
    engine = make()
    engine.finetune()
    refusal = Reply(403, {"error": {"message": "not yours", "code": "permission_denied"}})
    server.fault("POST", f"{JOB}/cancel", "reply", reply=refusal)
    with pytest.raises(EngineError, match="not yours"):
        engine.cancel()


def test_without_the_sdk_the_extra_is_named(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingDependencyError, match=r"\[openai\]"):
        make()


def test_importing_the_engines_loads_no_sdk_and_no_llamaindex() -> None:
    heavy = "openai", "gradientai", "llama_index.core", "torch", "transformers"
    code = (
        "import sys; from llama_index_finetune_structured import "
        "OpenAIFinetuneEngine, GradientFinetuneEngine, SunsetWarning, Waits; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
