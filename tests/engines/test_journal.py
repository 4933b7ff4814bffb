"""The run journal: old or new state after any failure, private to its owner, readable by later processes."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_index_finetune_structured.engines.hosted.journal import Run, RunJournal, find_run, list_runs
from llama_index_finetune_structured.errors import ConfigurationError, EngineError


def a_run(**changes: Any) -> Run:
    given = {"engine": "openai", "provider": "openai", "api_base": "http://x/v1"}
    return Run.model_validate(given | {"base_model": "m", "data_path": "d"} | changes)


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("at", [1, 2])
def test_a_failing_system_call_leaves_the_old_state(
    call: str, error: int, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = RunJournal(tmp_path / "run")
    journal.write(a_run(status="old"))
    fail_the_kth(monkeypatch, call, at, OSError(error, os.strerror(error)))
    try:
        journal.write(a_run(status="new"))
    except OSError:
        monkeypatch.undo()
        assert journal.require().status in ("old", "new")
    else:
        monkeypatch.undo()
        assert journal.require().status == "new"
    journal.write(a_run(status="newest"))
    assert journal.require().status == "newest"
    assert [path.name for path in journal.folder.iterdir()] == ["run.json"]


def fail_the_kth(monkeypatch: pytest.MonkeyPatch, call: str, at: int, error: OSError) -> None:
    real, count = getattr(os, call), 0

    def failing(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == at:
            raise error
        return real(*arguments, **options)

    monkeypatch.setattr(os, call, failing)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    request=st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text()),
    name=st.text(),
    known=st.lists(st.text()),
)
def test_what_is_written_is_read_back(
    tmp_path: Path, request: dict[str, Any], name: str, known: list[str]
) -> None:
    run = a_run(request=request, base_model=name, known_job_ids=tuple(known))
    assert RunJournal(tmp_path / "run").write(run) == RunJournal(tmp_path / "run").read()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2}', '{"version": 1}'])
def test_a_file_that_is_no_run_is_named_with_what_to_do(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(EngineError, match=r"run\.json: not a run journal.*start_job_id"):
        RunJournal(tmp_path).read()


def test_files_are_private_to_their_owner(tmp_path: Path) -> None:
    journal = RunJournal(tmp_path / "run")
    journal.write(a_run())
    with journal.lock():
        pass
    assert {path.name: path.stat().st_mode & 0o777 for path in journal.folder.iterdir()} == {
        "run.json": 0o600,
        "lock": 0o600,
    }
    assert journal.folder.stat().st_mode & 0o077 == 0


def test_runs_are_listed_oldest_first_and_unreadable_ones_left_out(tmp_path: Path) -> None:
    for name, created in (("b", "2026-01-02"), ("a", "2026-01-03"), ("c", "2026-01-01")):
        RunJournal(tmp_path / name).write(a_run(created_at=created))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "run.json").write_text("{")
    assert [folder.name for folder, _ in list_runs(tmp_path)] == ["c", "b", "a"]


def test_a_run_is_found_by_folder_beginning_or_job(tmp_path: Path) -> None:
    RunJournal(tmp_path / "gpt-1").write(a_run(job_id="ftjob-1"))
    RunJournal(tmp_path / "gpt-2").write(a_run(job_id="ftjob-2"))
    assert find_run("gpt-2", tmp_path).name == "gpt-2"
    assert find_run("ftjob-1", tmp_path).name == "gpt-1"
    assert find_run(str(tmp_path / "gpt-1")).name == "gpt-1"
    with pytest.raises(ConfigurationError, match="2 runs"):
        find_run("gpt", tmp_path)


def test_the_journal_is_plain_json(tmp_path: Path) -> None:
    RunJournal(tmp_path / "run").write(a_run(base_model="für"))
    assert json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["base_model"] == "für"
