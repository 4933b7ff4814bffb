"""A run killed at any of 20 points, saves included, ends in the undisturbed adapter and repeats no saved step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_runs_killed_at_twenty_points_end_in_the_undisturbed_bytes(tiny_llama: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.local.killed_runs", str(tiny_llama), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    runs = result["runs"]
    assert len(runs) == 20
    for run in runs:
        assert run["killed"], run
        assert run["adapter"] == result["undisturbed"], run
        assert run["executed"] == list(range(run["on_disk"] + 1, 9)), run
        assert run["unfinished"] == 0, run
