"""A process may be killed at any moment: every acknowledged record is on disk exactly once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")


def kill(rounds: int, acks_a_round: int, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.reliability.kills", str(rounds), str(acks_a_round), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    print(report)
    return report


def test_twenty_kills_lose_nothing(tmp_path: Path) -> None:
    report = kill(20, 400, tmp_path)
    assert report["kills"] == 20
    assert report["acknowledged"] > 2_000
    assert (report["lost"], report["doubled"]) == (0, 0)


@pytest.mark.slow
def test_two_hundred_kills_and_a_million_records_lose_nothing(tmp_path: Path) -> None:
    report = kill(200, 14_000, tmp_path)
    assert report["kills"] == 200
    assert report["acknowledged"] >= 1_000_000
    assert (report["lost"], report["doubled"]) == (0, 0)
