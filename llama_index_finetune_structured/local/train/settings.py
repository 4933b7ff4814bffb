"""Settings of a local fine-tuning run."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["LoraSettings"]

_ENOUGH_STEPS, _MOST_EPOCHS = 100, 5


class LoraSettings(BaseModel):
    """LoRA on all linear layers, AdamW, linear warm-up then cosine decay.

    ``max_length`` is in tokens a row, prompt and answer (None: the base model's context); longer rows are
    refused, never cut. ``upper_layers`` trains only the uppermost so many layers (None, or as many as there are:
    all), so that the backward pass ends there. ``epochs`` None: as many as give about 100 steps, from 1 to 5.
    ``checkpoint_steps`` None saves about ten times a run. LoRA: arXiv:2106.09685.
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
        """Passes over so many rows: few rows are seen more often."""
        if self.epochs is not None:
            return self.epochs
        return min(_MOST_EPOCHS, max(1, round(_ENOUGH_STEPS * self.batch_size / rows)))
