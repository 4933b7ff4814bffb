"""Settings of a local fine-tuning run."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["LoraSettings"]

# Chosen: about 100 steps a run, and no row more than five times.
_ENOUGH_STEPS, _MOST_EPOCHS = 100, 5


class LoraSettings(BaseModel):
    """LoRA on all linear layers (arXiv:2106.09685), AdamW, linear warm-up then cosine decay.

    - ``rank``, ``alpha``: of LoRA; updates are scaled by alpha / rank.
    - ``upper_layers``: train only that many of the uppermost layers, so that the backward pass ends there; None,
      or as many as there are: all.
    - ``learning_rate``: the highest, after warm-up.
    - ``epochs``: passes over the rows; None: as many as give about 100 steps, from 1 to 5.
    - ``batch_size``: rows a step.
    - ``max_length``: in tokens, prompt and answer of a row together; None: the base model's context window.
      Longer rows are rejected, never cut.
    - ``seed``: of LoRA's initial weights and the order of rows.
    - ``checkpoint_steps``: steps from one checkpoint to the next; None: about ten checkpoints a run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(default=16, gt=0)
    alpha: int = Field(default=32, gt=0)
    upper_layers: int | None = Field(default=None, gt=0)
    learning_rate: float = Field(default=1e-3, gt=0)
    epochs: int | None = Field(default=None, gt=0)
    batch_size: int = Field(default=2, gt=0)
    max_length: int | None = Field(default=None, gt=0)
    seed: int = 0
    checkpoint_steps: int | None = Field(default=None, gt=0)

    def epochs_for(self, rows: int) -> int:
        """Epochs for a number of rows: ``epochs``, or else more for fewer rows."""
        if self.epochs is not None:
            return self.epochs
        return min(_MOST_EPOCHS, max(1, round(_ENOUGH_STEPS * self.batch_size / rows)))
