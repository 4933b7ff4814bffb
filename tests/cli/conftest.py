"""Fixtures of the command-line tests: a working folder, a teacher server, a call in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llama_index_finetune_structured.cli import app
from tests.cli import papers
from tests.dataset.loopback_teacher import Teacher

Call = Callable[..., dict[str, Any]]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with papers/ and schema.yaml."""
    papers.write_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    return tmp_path


@pytest.fixture
def teacher() -> Iterator[Teacher]:
    with Teacher(papers.reply).running() as running:
        yield running


@pytest.fixture
def call() -> Call:
    """Run a command with --json, check its exit code against ``code`` and return the JSON object."""

    def run(*arguments: str, code: int = 0) -> dict[str, Any]:
        result = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
        assert result.exit_code == code, result.output
        found: dict[str, Any] = json.loads(result.stdout)
        return found | {"stderr": result.stderr}

    return run
