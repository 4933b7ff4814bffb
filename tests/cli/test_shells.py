"""What a shell may do to a command: closed and full streams, odd terminals, options without effect."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_bad_input import assert_one_clear_error, good, here, invoke

__all__ = ["good", "here"]


def _in_a_shell(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A line of the shell in which ``$F`` is the program."""
    program = f"{sys.executable} -m llama_index_finetune_structured.cli"
    return subprocess.run(
        ["bash", "-c", line.replace("$F", program)],
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | variables,
        check=False,
    )


@pytest.mark.parametrize("stream", ["/dev/full", "&-"])
def test_a_result_that_cannot_be_printed_is_no_traceback(good: Path, stream: str) -> None:
    for options in ("--json", ""):
        line = f"$F report {good}/scorecard.json --html {good}/page.html {options} >{stream}"
        found = _in_a_shell(line)
        assert "Traceback" not in found.stderr
        if stream == "/dev/full":
            assert found.returncode == 1
            assert "No space left on device" in found.stderr


def test_training_needs_no_open_stderr(good: Path, tmp_path: Path) -> None:
    found = _in_a_shell(f"$F train {good}/rows.jsonl --base-model {good}/base --output {tmp_path}/out 2>&-")
    assert found.returncode == 0, found.stdout
    assert "5 steps" in found.stdout


@pytest.mark.parametrize("columns", ["0", "\u00b2", "-3", ""])
def test_a_strange_number_of_columns_hides_no_error(columns: str) -> None:
    found = _in_a_shell("$F report nothing", COLUMNS=columns)
    assert "cannot be read" in found.stderr
    assert "Traceback" not in found.stderr


def test_a_page_does_not_replace_its_scorecard(here: Path) -> None:
    before = (here / "scorecard.json").read_bytes()
    result = invoke("report scorecard.json --html folder/../scorecard.json")
    assert_one_clear_error(result)
    assert "another --html" in result.stderr
    assert (here / "scorecard.json").read_bytes() == before


@pytest.mark.parametrize(
    ("line", "code", "named"),
    [
        ("check rows.jsonl --target nope", 2, "--target"),
        ("export RUN out --format nope", 2, "--format"),
        ("export RUN out --dtype nope", 2, "--dtype"),
        ("export RUN out --format gguf-adapter --dtype bf16", 1, "expected one of f32, f16"),
        ("check rows.jsonl --base-model ~nobody-of-this-name/base", 1, "no such folder"),
        ("export RUN out --schema schema.yaml", 1, "--check FILE"),
        ("build papers --schema schema.yaml --pairs pairs.jsonl --limit 3", 1, "leave --limit out"),
        ("build papers --schema schema.yaml --pairs pairs.jsonl --ask-for x", 1, "leave --ask-for out"),
        (
            "build papers --schema schema.yaml --pairs pairs.jsonl --retry-failed",
            1,
            "leave --retry-failed out",
        ),
        ("build papers --schema schema.yaml --teacher t --questions q --limit 3", 1, "leave --limit out"),
        (
            "build papers --schema schema.yaml --teacher t --questions q --questions-per-chunk 2",
            1,
            "per-chunk out",
        ),
    ],
)
@pytest.mark.usefixtures("here")
def test_an_option_that_would_change_nothing_or_has_no_such_value_is_refused(
    line: str, code: int, named: str
) -> None:
    result = invoke(line)
    assert_one_clear_error(result)
    assert result.exit_code == code
    assert named in result.stderr
