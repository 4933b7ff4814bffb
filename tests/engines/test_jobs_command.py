"""``jobs list|show|wait|cancel`` on the journal of real runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llama_index_finetune_structured.cli.jobs import app
from llama_index_finetune_structured.engines.hosted.engine import OpenAIFinetuneEngine
from llama_index_finetune_structured.engines.hosted.journal import Journal
from tests.fakes.openai_server import OpenAIServer
from tests.fakes.rows import write_rows


@pytest.fixture
def run(server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPENAI_API_KEY", server.key)
    monkeypatch.setenv("COLUMNS", "200")
    engine = OpenAIFinetuneEngine(
        "gpt-4o-mini", write_rows(tmp_path / "train.jsonl"), api_base=server.base, validate_json=False
    )
    engine.finetune()
    return engine.run_dir


def call(*arguments: str, fails: bool = False) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == (1 if fails else 0), result.output
    return result.output


def test_list_shows_what_was_last_seen(run: Path, server: OpenAIServer) -> None:
    asked_so_far = len(server.exchanges)
    shown = call("list")
    assert all(part in shown for part in (run.name, "ftjob-000002", "validating_files"))
    assert len(server.exchanges) == asked_so_far


def test_words_in_brackets_are_no_markup(run: Path) -> None:
    journal = Journal(run)
    journal.write(journal.require().but(status="failed", error="row [red] has [/] no answer\nsecond line"))
    shown = " ".join(call("list").split())
    assert "[red] has [/]" in shown
    assert "second line" not in shown


def test_a_live_list_follows_every_job_to_its_end(run: Path) -> None:
    shown = call("list", "--live", "--every", "0.05")
    assert "succeeded" in shown
    assert "ft:gpt-4o-mini" in shown
    assert run.name in shown


def test_a_live_list_follows_the_others_where_one_job_is_unknown(
    run: Path, server: OpenAIServer, tmp_path: Path
) -> None:
    engine = OpenAIFinetuneEngine(
        "gpt-4o-mini", write_rows(tmp_path / "b.jsonl", count=11), api_base=server.base, validate_json=False
    )
    engine.finetune()
    del server.jobs[Journal(run).require().job_id or ""]
    shown = call("list", "--live", "--every", "0.05")
    assert f"{run.name}: " in shown
    assert Journal(engine.run_dir).require().status == "succeeded"


def test_json_is_for_programs(run: Path) -> None:
    [row] = json.loads(call("list", "--json"))
    assert (row["job_id"], row["folder"]) == ("ftjob-000002", str(run))
    [row] = json.loads(call("list", "--json", "--live", "--every", "0.05"))
    assert row["status"] == "succeeded"
    assert json.loads(call("show", run.name, "--json")) == {k: v for k, v in row.items() if k != "folder"}


def test_show_is_the_whole_journal(run: Path) -> None:
    assert json.loads(call("show", run.name[:20]))["job_id"] == "ftjob-000002"


def test_wait_goes_to_the_end_and_names_the_model(run: Path, server: OpenAIServer) -> None:
    server.scripts["ftjob-000002"] = ["succeeded"]
    assert "ftjob-000002 succeeded: ft:gpt-4o-mini" in call("wait", "ftjob-000002")
    assert run.name in call("list")


@pytest.mark.usefixtures("run")
def test_wait_fails_when_the_job_failed(server: OpenAIServer) -> None:
    server.scripts["ftjob-000002"] = ["failed"]
    assert "bad row" in call("wait", "ftjob-000002", fails=True)


@pytest.mark.usefixtures("run")
def test_wait_fails_when_its_time_is_up(server: OpenAIServer) -> None:
    server.scripts["ftjob-000002"] = []
    assert "after 0 s" in call("wait", "ftjob-000002", "--timeout", "0", fails=True)


@pytest.mark.usefixtures("run")
def test_cancel_stops_the_job(server: OpenAIServer) -> None:
    assert "ftjob-000002 cancelled" in call("cancel", "ftjob-000002")
    assert server.jobs["ftjob-000002"]["status"] == "cancelled"


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("command", ["show", "wait", "cancel"])
def test_an_unknown_run_is_named(command: str) -> None:
    assert "names no run" in call(command, "nothing", fails=True)


def test_another_runs_folder_is_an_option(tmp_path: Path) -> None:
    assert "no run under" in call("show", "x", "--runs", str(tmp_path), fails=True)
