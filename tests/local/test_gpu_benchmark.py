"""The benchmark for GPUs runs at tiny sizes on any device, so that the minutes on a GPU are not lost to a mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def _run(file: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPT), "--dry-run", "--json", str(file), *options]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])})
    return json.loads(file.read_text())


def test_a_dry_run_measures_every_part_and_agrees_with_trl_and_generate(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps({"another GPU": {"models": {}}}))
    devices = _run(file)
    assert devices.pop("another GPU") == {"models": {}}
    ((_, about),) = devices.items()
    parts = about["models"]["tiny-qwen3"]
    for kind in ("questions", "shared_schema", "unshared"):
        figures = parts[kind]
        assert figures["largest_loss_difference"] < 1e-3
        for system in ("ours", "trl"):
            assert figures[system]["tokens_per_s"] > 0
            assert 0 < figures[system]["mfu"] < 1
            assert figures[system]["peak_gib"] > 0
    assert parts["questions"]["tokens_a_step"]["packed"] < parts["unshared"]["tokens_a_step"]["packed"]
    assert parts["serving"]["same_answers"] == 1


def test_what_would_begin_after_the_time_is_skipped(tmp_path: Path) -> None:
    (about,) = _run(tmp_path / "gpu.json", "--minutes", "-1").values()
    assert set(about["models"]["tiny-qwen3"].values()) == {"skipped: no time left"}
