"""The same rows in the same order give TRL's loss curve, with each common prefix computed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from llama_index_finetune_structured import LoraSettings
from llama_index_finetune_structured.local.model.adapter import add_lora
from llama_index_finetune_structured.local.model.prompts import TokenRow
from llama_index_finetune_structured.local.train.batches import batches
from llama_index_finetune_structured.local.train.trainer import Trainer
from tests import tiny

BATCH, RATE = 4, 1e-2
SETTINGS = LoraSettings(rank=4, alpha=8, batch_size=BATCH, epochs=1, learning_rate=RATE)
ROWS = [
    TokenRow((*range(2, 40), *([60 + chunk] * 20), 100 + question), (120 + chunk, 140 + question, 1))
    for chunk in range(3)
    for question in range(8)
]


def _model() -> Any:
    model = tiny.model("llama")
    torch.manual_seed(1)
    return add_lora(model, rank=SETTINGS.rank, alpha=SETTINGS.lora_alpha)


class _Losses(TrainerCallback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in logs:
            self.seen.append(logs["loss"])


def _losses_of_trl(made: list[list[TokenRow]], folder: Path) -> list[float]:
    rows = [row for batch in made for row in batch]
    data = Dataset.from_list(
        [
            {
                "input_ids": [*row.prompt, *row.answer],
                "completion_mask": [0] * len(row.prompt) + [1] * len(row.answer),
            }
            for row in rows
        ]
    )
    config = SFTConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=RATE,
        lr_scheduler_type="cosine",
        warmup_steps=1,
        max_length=None,
        completion_only_loss=True,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    losses = _Losses()
    trainer = SFTTrainer(
        model=_model(), args=config, train_dataset=data, processing_class=tiny.tokenizer(), callbacks=[losses]
    )
    trainer.train()
    return losses.seen


@pytest.mark.filterwarnings("ignore")  # TRL's own, of its own dependencies
def test_the_loss_curve_is_that_of_trl_to_four_decimals(tmp_path: Path) -> None:
    made = batches(ROWS, BATCH, seed=f"{SETTINGS.seed}:0")
    trainer = Trainer(_model(), ROWS, SETTINGS, tmp_path / "ours", fingerprint="trl")
    assert trainer.loss.packed
    ours = [entry["loss"] for entry in trainer.run().steps]
    assert ours[-1] < ours[0]
    assert ours == pytest.approx(_losses_of_trl(made, tmp_path / "trl"), abs=5e-5)
