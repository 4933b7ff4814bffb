"""Calls of ``improve`` and ``rollback`` that kill themselves at exact file operations, each in a forked process.

    python -m tests.tuning.killed_improvements RUN FOLDER

Prints one JSON object: the answers and the content of undisturbed versions, and for each kill which version served
after it, that version's answer, and the content after the same call again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llama_index_finetune_structured import LoraLLM, rollback
from llama_index_finetune_structured.local.model.versions import read_history, version_names
from llama_index_finetune_structured.tuning.improve import run_improvement
from tests.local.killed_runs import die_at, in_a_fork
from tests.tuning.test_improve import QUESTION, capture

STEPS = ("replace", "fsync", "mkdir")
KILLS_A_STEP = 4


def improved(run: Path) -> None:
    run_improvement(
        run,
        capture(),
        margin=1,
        minutes=None,
        output_cls=None,
        base_model=None,
        start_from="base",
        say=lambda text: None,
    )


def counts(run: Path, work: Callable[[Path], None]) -> Counter[str]:
    """How often a whole call makes each file operation."""
    path = run.with_suffix(".counts")

    def counting() -> None:
        found: Counter[str] = Counter()
        for step in STEPS:
            own: Any = getattr(os, step)

            def counted(*args: Any, _step: str = step, _own: Any = own, **kwargs: Any) -> Any:
                found[_step] += 1
                return _own(*args, **kwargs)

            setattr(os, step, counted)
        work(run)
        path.write_text(json.dumps(found))

    assert in_a_fork(counting) == 0
    return Counter(json.loads(path.read_text()))


def answer(run: Path) -> str:
    """The answer of the version that serves, from a process of its own: this one forks, and starts no thread."""
    path = run.with_suffix(".answer")

    def ask() -> None:
        path.write_text(str(LoraLLM.from_adapter(run).complete(QUESTION, max_new_tokens=12).text))

    assert in_a_fork(ask) == 0
    return path.read_text()


def finished(run: Path) -> dict[str, Any]:
    """What an improved run holds, without times."""
    weights = run / "versions" / "0002" / "adapter" / "adapter_model.safetensors"
    return {
        "history": [entry.version for entry in read_history(run)],
        "versions": version_names(run),
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "unfinished": sorted(path.name for path in run.rglob(".*") if path.name != ".lock"),
    }


def killed(run: Path, work: Callable[[Path], None], step: str, nth: int, when: str) -> dict[str, Any]:
    """One kill, what serves after it, and what there is after the same call again."""

    def dies() -> None:
        die_at(os, step, nth, when)
        work(run)

    status = in_a_fork(dies)
    history = read_history(run)
    served = history[-1].version if history else "0001"
    found = {
        "point": f"{when} {step} {nth}",
        "killed": os.WIFSIGNALED(status),
        "served": served,
        "answer": answer(run),
    }
    assert in_a_fork(lambda: improved(run)) == 0, found
    return {**found, "finished": finished(run)}


def spread(total: int) -> list[int]:
    """Up to ``KILLS_A_STEP`` of the numbers from 1 to ``total``, the first and the last ones among them."""
    wanted = {1, total, total - 1, *(1 + total * n // KILLS_A_STEP for n in range(KILLS_A_STEP))}
    return sorted(n for n in wanted if 1 <= n <= total)


def main(source: Path, folder: Path) -> None:
    whole = Path(shutil.copytree(source, folder / "whole"))
    answers = {"0001": answer(whole)}
    done = counts(whole, improved)
    answers["0002"] = answer(whole)
    kills = [
        killed(Path(shutil.copytree(source, folder / f"{step}{nth}{when}")), improved, step, nth, when)
        for step in STEPS
        for nth in spread(done[step])
        for when in (("before", "after") if step == "replace" else ("before",))
    ]
    assert finished(whole)["history"] == ["0001", "0002"]
    report = {"answers": answers, "finished": finished(whole), "kills": kills}
    back = [
        killed_rollback(Path(shutil.copytree(whole, folder / f"back{step}{when}")), step, when)
        for step in ("replace", "fsync")
        for when in ("before", "after")
    ]
    print(json.dumps({**report, "back": back}))


def killed_rollback(run: Path, step: str, when: str) -> dict[str, Any]:
    """A rollback that is killed: either version serves, and a second call leads to the first one."""

    def dies() -> None:
        die_at(os, step, 1, when)
        rollback(run)

    status = in_a_fork(dies)
    served = read_history(run)[-1].version
    return {"killed": os.WIFSIGNALED(status), "served": served, "answer": answer(run)}


if __name__ == "__main__":
    import peft  # noqa: F401  imported once, before the forks
    import torch

    torch.set_num_threads(1)  # a forked process must not inherit another's thread pool
    main(Path(sys.argv[1]), Path(sys.argv[2]))
