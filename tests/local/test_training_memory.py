"""Memory does not grow in a long run: a thousand steps over rows of many lengths."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from llama_index_finetune_structured import LoraSettings
from llama_index_finetune_structured.local.model.adapter import add_lora
from llama_index_finetune_structured.local.model.prompts import TokenRow
from llama_index_finetune_structured.local.train.trainer import Trainer
from tests import tiny


def _resident_mb() -> float:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_thousand_steps_keep_the_memory_of_the_first_two_hundred(tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = [
        TokenRow(tuple(draw.choices(range(2, 250), k=draw.randint(20, 400))), (5,) * draw.randint(1, 80))
        for _ in range(400)
    ]
    settings = LoraSettings(rank=4, alpha=8, batch_size=2, epochs=5, checkpoint_steps=100)
    trainer = Trainer(
        add_lora(tiny.model("llama"), rank=4, alpha=8), rows, settings, tmp_path, fingerprint="memory"
    )
    seen: list[float] = []
    trainer.run(on_step=lambda _: seen.append(_resident_mb()))
    assert len(seen) == 1000
    print(f"resident MB after 200 steps: {max(seen[:200]):.0f}, after 1,000: {max(seen):.0f}")
    assert max(seen) <= max(seen[:200]) + 32
