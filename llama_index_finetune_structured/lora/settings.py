"""Settings of a local fine-tuning run."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["LoraSettings"]


class LoraSettings(BaseModel):
    """LoRA on all linear layers, AdamW, linear warm-up then cosine decay.

    ``max_length`` is in tokens a row, prompt and answer (None: the base model's context); longer rows are
    refused, never cut. ``upper_layers`` trains only the uppermost so many layers (None, or as many as there are:
    all), so that the backward pass ends there. ``checkpoint_steps`` None saves about ten times a run.
    LoRA: arXiv:2106.09685.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(default=16, gt=0)
    alpha: int = Field(default=32, gt=0)
    upper_layers: int | None = Field(default=None, gt=0)
    learning_rate: float = Field(default=1e-3, gt=0)
    epochs: int = Field(default=1, gt=0)
    batch_size: int = Field(default=4, gt=0)
    max_length: int | None = Field(default=None, gt=0)
    seed: int = 0
    checkpoint_steps: int | None = Field(default=None, gt=0)
