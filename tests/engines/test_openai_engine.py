"""The OpenAI engine against a strict server over real HTTP, with the real SDK."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from llama_index.llms.openai import OpenAI

from llama_index_finetune_structured.engines.hosted.engine import OpenAIFinetuneEngine
from llama_index_finetune_structured.engines.timeouts import Timeouts
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
    make(hyperparameters={"n_epochs": 2}, suffix="albums", seed=5, validation=validation).finetune()
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


def test_data_and_data_path_are_the_same_request(server: OpenAIServer, make: Any, data: Path) -> None:
    make().finetune()
    make(data=data, data_path=None).finetune()
    assert len(server.jobs) == 1


@pytest.mark.parametrize(("count", "message"), [(0, "no training data: pass data="), (2, "pass one of them")])
def test_both_or_none_of_data_and_data_path_is_an_error(
    count: int, message: str, make: Any, data: Path
) -> None:
    both = {"data": data if count else None, "data_path": data if count else None}
    with pytest.raises(ConfigurationError, match=message):
        make(**both)


def test_the_journal_is_in_the_output_dir(make: Any, tmp_path: Path) -> None:
    engine = make(output_dir=tmp_path / "mine")
    engine.finetune()
    assert engine.output_dir == tmp_path / "mine"
    assert json.loads((tmp_path / "mine" / "run.json").read_text())["phase"] == "submitted"


def test_another_run_folder_trains_the_same_again_and_reuses_the_upload(
    server: OpenAIServer, make: Any, tmp_path: Path
) -> None:
    make().finetune()
    make(output_dir=tmp_path / "second").finetune()
    assert (len(server.jobs), len(server.files)) == (2, 1)


def test_other_data_is_another_run(server: OpenAIServer, make: Any, tmp_path: Path) -> None:
    make().finetune()
    make(data_path=write_rows(tmp_path / "more.jsonl", count=13)).finetune()
    assert (len(server.jobs), len(server.files)) == (2, 2)


def test_a_run_folder_refuses_another_request(make: Any, tmp_path: Path) -> None:
    make(output_dir=tmp_path / "run").finetune()
    with pytest.raises(ConfigurationError, match="holds another run"):
        make(output_dir=tmp_path / "run", seed=3).finetune()


def test_start_job_id_attaches_without_submitting(server: OpenAIServer, make: Any, tmp_path: Path) -> None:
    make(output_dir=tmp_path / "elsewhere").finetune()
    (job_id,) = server.jobs
    engine = make(start_job_id=job_id, output_dir=tmp_path / "here")
    engine.finetune()
    assert engine.get_finetuned_model().model.endswith(job_id)
    assert len(server.jobs) == 1


def test_from_run_needs_only_the_folder_and_a_key(
    server: OpenAIServer, make: Any, timeouts: Timeouts
) -> None:
    first = make(hyperparameters={"n_epochs": 2})
    first.finetune()
    engine = OpenAIFinetuneEngine.from_run(first.output_dir, api_key=server.key, timeouts=timeouts)
    assert engine.wait().status == "succeeded"
    engine.finetune()
    assert len(server.jobs) == 1


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
    server: OpenAIServer, data: Path, timeouts: Timeouts
) -> None:
    engine = OpenAIFinetuneEngine(
        "Qwen/Qwen3-4B", data, api_base=server.base, api_key=server.key, timeouts=timeouts
    )
    engine.finetune()
    engine.wait()
    server.models[str(engine.get_current_job().fine_tuned_model)] = {"max_model_len": 32768}
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


def test_from_finetuning_handler_saves_and_trains(
    server: OpenAIServer, timeouts: Timeouts, tmp_path: Path
) -> None:
    class Handler:
        def save_finetuning_events(self, path: str) -> None:
            write_rows(Path(path))

    engine = OpenAIFinetuneEngine.from_finetuning_handler(
        Handler(),
        "gpt-4o-mini",
        tmp_path / "out.jsonl",
        api_base=server.base,
        api_key=server.key,
        timeouts=timeouts,
    )
    engine.finetune()
    assert len(server.jobs) == 1


def test_the_environment_gives_key_and_address(
    server: OpenAIServer, data: Path, timeouts: Timeouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match="set OPENAI_API_KEY"):
        OpenAIFinetuneEngine("gpt-4o-mini", data)
    monkeypatch.setenv("OPENAI_API_KEY", server.key)
    monkeypatch.setenv("OPENAI_API_BASE", server.base)
    OpenAIFinetuneEngine("gpt-4o-mini", data, timeouts=timeouts).finetune()
    assert len(server.jobs) == 1


def test_without_the_sdk_the_extra_is_named(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingDependencyError, match=r"\[openai\]"):
        make()


def test_importing_the_engines_loads_no_sdk_and_no_llamaindex() -> None:
    heavy = "openai", "gradientai", "llama_index.core", "torch", "transformers"
    code = (
        "import sys; from llama_index_finetune_structured import "
        "OpenAIFinetuneEngine, GradientFinetuneEngine, SunsetWarning, Timeouts; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_two_engines_at_once_each_train_their_own_data(
    server: OpenAIServer, make: Any, tmp_path: Path
) -> None:
    class Rows:
        def __init__(self, rows: int) -> None:
            self.rows = rows

        def save(self, path: Path, format: str | None = None) -> None:
            write_rows(Path(path), count=self.rows)
            both.wait(timeout=30)  # both are written before either is named by its content

    both = threading.Barrier(2)
    engines = [make(data_path=Rows(rows)) for rows in (12, 15)]

    async def submit() -> None:
        await asyncio.gather(*(engine.afinetune() for engine in engines))

    asyncio.run(submit())
    trained = [server.contents[job["training_file"]].count(b"\n") for job in server.jobs.values()]
    assert sorted(trained) == [12, 15]


def test_a_run_folder_of_another_job_is_not_attached_to(
    server: OpenAIServer, make: Any, tmp_path: Path
) -> None:
    make(output_dir=tmp_path / "a").finetune()
    make(output_dir=tmp_path / "b").finetune()
    first, second = server.jobs
    before = (tmp_path / "a" / "run.json").read_bytes()
    with pytest.raises(ConfigurationError, match=f"holds the run of job {first}; give another output_dir"):
        make(start_job_id=second, output_dir=tmp_path / "a")
    assert (tmp_path / "a" / "run.json").read_bytes() == before


def test_a_job_is_attached_to_the_folder_whose_submission_was_refused(
    server: OpenAIServer, make: Any, tmp_path: Path
) -> None:
    make(output_dir=tmp_path / "a").finetune()
    (job_id,) = server.jobs
    server.fault("POST", "/v1/fine_tuning/jobs", "reply", reply=Reply(400, {"error": {"message": "no"}}))
    with pytest.raises(EngineError):
        make(output_dir=tmp_path / "b").finetune()
    engine = make(start_job_id=job_id, output_dir=tmp_path / "b")
    assert engine.wait().id == job_id
    assert len(server.jobs) == 1
