"""Killed and stopped writes, counted: old content or new, and nothing left over after the next write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from .killed_writes import NEVER_REPLACES, WRITERS

ROOT = Path(__file__).parents[2]
_FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # there fsync costs nothing


@pytest.fixture(scope="module")
def report() -> dict[str, dict[str, int] | list[str]]:
    with tempfile.TemporaryDirectory(dir=_FAST) as folder:
        command = [sys.executable, "-m", "tests.reliability.killed_writes", folder]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found: dict[str, dict[str, int] | list[str]] = json.loads(run.stdout)
    return found


def test_a_write_killed_at_any_step_leaves_old_or_new_and_the_next_one_removes_what_is_left(
    report: dict[str, list[str]],
) -> None:
    assert report["broken"] == []


def test_every_writer_was_killed_at_each_of_its_steps(report: dict[str, dict[str, int]]) -> None:
    assert report["tries"].keys() == WRITERS.keys()
    assert all(number >= 18 for number in report["tries"].values()), report["tries"]
    assert all(report["tries"][name] >= 30 for name in (*NEVER_REPLACES, "folder", "checkpoint"))
