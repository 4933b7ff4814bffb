"""Steps that kill themselves at an exact call to the file system or the database, each in a forked process.

    python -m tests.service.gradient.killed_steps BASE FOLDER POINTS

Prints one JSON object: the hash of the weights where nothing is killed, and for each kill point what was found.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from llama_index_finetune_structured import LoraLLM
from llama_index_finetune_structured.service.database import Database
from llama_index_finetune_structured.service.gradient_api.adapters import GradientAdapters
from llama_index_finetune_structured.service.gradient_api.requests import Sample
from llama_index_finetune_structured.service.gradient_api.trainer import StepTrainer
from llama_index_finetune_structured.service.gradient_api.training import GradientTraining
from llama_index_finetune_structured.service.pool import ModelPool
from llama_index_finetune_structured.service.settings import ServiceSettings
from tests.local.killed_runs import die_at, in_a_fork

LORA = {"rank": 2, "alpha": 4, "upper_layers": None, "learning_rate": 0.01, "seed": 0}
SAMPLES = [Sample(inputs=f"Colour {n} is red.") for n in range(3)]
POINTS = [
    (StepTrainer, "step", 2, "after"),
    (os, "replace", 4, "before"),
    (GradientAdapters, "commit", 2, "before"),
    (GradientAdapters, "commit", 2, "after"),
    (os, "replace", 1, "before"),
    (os, "replace", 2, "after"),
    (os, "replace", 5, "after"),
    (os, "fsync", 7, "before"),
    (shutil, "rmtree", 1, "before"),
]


class Steps:
    """The steps of one adapter, in this process."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.settings = ServiceSettings(folder=folder, bases={"tiny": str(base)}, workers=False)
        self.database = Database(self.settings.database_path)
        self.adapters = GradientAdapters(self.database, self.settings)
        self.training = GradientTraining(self.settings, self.adapters, ModelPool())

    def take_all(self, llm: LoraLLM, acknowledged: Path) -> None:
        """What a client does: send the next sample as long as there is one."""
        self.adapters.clean_up()
        (adapter,) = self.adapters.list_adapters("local") or [None]
        adapter_id = adapter.id if adapter else self.adapters.create("local", "colours", "tiny", LORA)
        for sample in SAMPLES[adapter.steps if adapter else 0 :]:
            self.training._step(llm, adapter_id, "local", [sample])
            with acknowledged.open("a") as file:
                file.write(".")
        self.database.close()

    def found(self) -> dict[str, Any]:
        (adapter,) = self.adapters.list_adapters("local")
        folder = self.settings.gradient_folder / adapter.id
        weights = folder / str(adapter.steps) / "adapter/adapter_model.safetensors"
        self.database.close()
        return {
            "steps": adapter.steps,
            "weights": hashlib.sha256(weights.read_bytes()).hexdigest() if weights.exists() else None,
            "leftovers": [path.name for path in folder.iterdir() if path.name != str(adapter.steps)],
        }


def run(base: Path, folder: Path, llm: LoraLLM, point: Any = None) -> dict[str, Any]:
    acknowledged = folder / "acknowledged"
    folder.mkdir()
    acknowledged.touch()

    def work() -> None:
        steps = Steps(folder / "service", base)
        if point is not None:
            die_at(*point)
        steps.take_all(llm, acknowledged)

    status = in_a_fork(work)
    count = len(acknowledged.read_text())
    after_kill = Steps(folder / "service", base).found()
    if point is not None:
        assert in_a_fork(lambda: Steps(folder / "service", base).take_all(llm, acknowledged)) == 0
    return {
        "point": None if point is None else f"{point[3]} call {point[2]} of {point[1]}",
        **Steps(folder / "service", base).found(),
        "killed": os.WIFSIGNALED(status),
        "acknowledged": count,
        "steps": after_kill["steps"],
    }


def main(base: Path, folder: Path, points: int) -> None:
    llm = LoraLLM(base_model=str(base))
    _ = llm._loaded
    undisturbed = run(base, folder / "undisturbed", llm)
    assert undisturbed["acknowledged"] == len(SAMPLES)
    runs = [run(base, folder / str(n), llm, point) for n, point in enumerate(POINTS[:points])]
    print(json.dumps({"undisturbed": undisturbed["weights"], "runs": runs}))


if __name__ == "__main__":
    import peft  # noqa: F401  imported once, before the forks
    import torch

    torch.set_num_threads(1)  # a forked process must not inherit another's thread pool
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
