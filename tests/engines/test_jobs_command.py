"""The commands ``jobs list``, ``show``, ``wait`` and ``cancel``, on journals of real runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llama_index_finetune_structured.cli import app
from llama_index_finetune_structured.engines.hosted.engine import OpenAIFinetuneEngine
from llama_index_finetune_structured.engines.hosted.journal import RunJournal
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
    return engine.output_dir


def call(*arguments: str, fails: bool = False) -> str:
    """What ``jobs`` prints: on stdout, or on stderr where it fails."""
    result = CliRunner().invoke(app, ["jobs", *arguments], catch_exceptions=False)
    assert result.exit_code == (1 if fails else 0), result.output
    return result.stderr if fails else result.stdout


def test_list_shows_what_was_last_seen(run: Path, server: OpenAIServer) -> None:
    asked_so_far = len(server.exchanges)
    shown = call("list")
    assert all(part in shown for part in (run.name, "ftjob-000002", "validating_files"))
    assert len(server.exchanges) == asked_so_far


def test_words_in_brackets_are_no_markup(run: Path) -> None:
    journal = RunJournal(run)
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
    del server.jobs[RunJournal(run).require().job_id or ""]
    result = CliRunner().invoke(app, ["jobs", "list", "--live", "--every", "0.05"], catch_exceptions=False)
    assert f"{run.name}: " in result.stderr
    assert RunJournal(engine.output_dir).require().status == "succeeded"


def test_list_and_show_print_nothing_but_json_with_json(run: Path) -> None:
    [row] = json.loads(call("list", "--json"))
    assert (row["job_id"], row["folder"]) == ("ftjob-000002", str(run))
    [row] = json.loads(call("list", "--json", "--live", "--every", "0.05"))
    assert row["status"] == "succeeded"
    assert json.loads(call("show", run.name, "--json")) == {k: v for k, v in row.items() if k != "folder"}


def test_show_lists_the_fields_of_the_journal_for_people(run: Path) -> None:
    shown = call("show", run.name[:20])
    assert re.search(r"^job_id +ftjob-000002 *$", shown, re.MULTILINE)
    assert re.search(r"^base_model +gpt-4o-mini *$", shown, re.MULTILINE)


@pytest.mark.usefixtures("run")
def test_wait_and_cancel_print_nothing_but_json_with_json(server: OpenAIServer) -> None:
    server.scripts["ftjob-000002"] = ["succeeded"]
    done = json.loads(call("wait", "ftjob-000002", "--json"))
    assert (done["id"], done["status"]) == ("ftjob-000002", "succeeded")
    assert json.loads(call("cancel", "ftjob-000002", "--json")) == {
        "id": "ftjob-000002",
        "status": "succeeded",
    }


@pytest.mark.parametrize("command", ["show", "wait", "cancel"])
def test_an_error_is_json_with_json(command: str) -> None:
    result = CliRunner().invoke(app, ["jobs", command, "nothing", "--json"])
    assert result.exit_code == 1
    assert "names no run" in json.loads(result.stdout)["error"]


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
