"""Runs that kill themselves at an exact call to the file system or after an exact step, each in a forked process.

    python -m tests.local.killed_runs BASE FOLDER

Prints one JSON object: the undisturbed adapter's hash, and for each kill point the hash after the second run, the
steps that were on disk when it was killed and the steps that the second run executed.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llama_index_finetune_structured import FinetuneDataset, LoraFinetuneEngine, LoraSettings
from llama_index_finetune_structured.local.model.lora_files import WEIGHTS
from llama_index_finetune_structured.local.train import checkpoints
from llama_index_finetune_structured.local.train import trainer as training

SETTINGS = LoraSettings(rank=2, alpha=4, batch_size=2, epochs=2, checkpoint_steps=2)
POINTS = [
    *((os, "replace", n, "before") for n in (1, 2, 4, 5)),
    *((os, "replace", n, "after") for n in (1, 3, 4, 5)),
    *((os, "fsync", n, "before") for n in (1, 2, 3, 5, 8, 12, 13)),
    *((training.Trainer, "_train_step", n, "after") for n in (1, 3, 5, 7, 8)),
]


def engine(base: Path, output: Path) -> LoraFinetuneEngine:
    pairs = [(f"Describe colour {n}.", f'{{"name":"c{n}"}}') for n in range(8)]
    data = FinetuneDataset.from_pairs(pairs, schema={"type": "object"})
    return LoraFinetuneEngine(data, base_model=base, output_dir=output, config=SETTINGS)


def die_at(owner: Any, name: str, nth: int, when: str) -> None:
    """Kill this process before or after the ``nth`` call of ``owner.name``."""
    own: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = own(*args, **kwargs)
        if calls == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, counted)


def in_a_fork(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked process; returns its wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1]


def train_and_count(base: Path, output: Path) -> None:
    step: Any = training.Trainer._train_step
    with (output / "executed").open("a") as executed:

        def noted(trainer: Any, batch: Any) -> Any:
            entry = step(trainer, batch)
            executed.write(f"{entry['step']:.0f}\n")
            return entry

        training.Trainer._train_step = noted  # type: ignore[method-assign, assignment]
        engine(base, output).finetune()


def adapter_hash(output: Path) -> str:
    return hashlib.sha256((output / "adapter" / WEIGHTS).read_bytes()).hexdigest()


def kill_and_go_on(base: Path, output: Path, point: tuple[Any, str, int, str]) -> dict[str, Any]:
    output.mkdir()

    def killed() -> None:
        die_at(*point)
        engine(base, output).finetune()

    status = in_a_fork(killed)
    found = checkpoints.newest_checkpoint(output / "checkpoints")
    assert in_a_fork(lambda: train_and_count(base, output)) == 0
    executed = (output / "executed").read_text().split()
    return {
        "point": f"{point[3]} call {point[2]} of {point[1]}",
        "killed": os.WIFSIGNALED(status),
        "on_disk": found[1]["step"] if found else 0,
        "executed": [int(step) for step in executed],
        "adapter": adapter_hash(output),
        "unfinished": len(list(output.rglob(".unfinished-*"))),
    }


def main(base: Path, folder: Path) -> None:
    whole = folder / "undisturbed"
    assert in_a_fork(lambda: engine(base, whole).finetune()) == 0
    runs = [kill_and_go_on(base, folder / str(n), point) for n, point in enumerate(POINTS)]
    print(json.dumps({"undisturbed": adapter_hash(whole), "runs": runs}))


if __name__ == "__main__":
    import peft  # noqa: F401  imported once, before the forks
    import torch

    torch.set_num_threads(1)  # a forked process must not inherit another's thread pool
    main(Path(sys.argv[1]), Path(sys.argv[2]))
