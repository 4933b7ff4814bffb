"""Settings of a local fine-tuning run."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..model.prompts import SchemaPrompt, ToolPrompt
from ..model.quantization import Quantization
from ..model.reasoning import Thinking
from .recipe import epochs_of

__all__ = ["PIECE_TOKENS", "LoraSettings", "Tracker"]

PIECE_TOKENS = 8192  # chosen: bounds the activations
"""Most tokens in one forward pass, where the settings say nothing else."""

# Chosen: beyond what any base model has a use for, and far below what exhausts the memory.
_MOST_RANK, _MOST_ALPHA, _MOST_SET_EPOCHS = 8192, 2**20, 100_000
_MOST_BATCH = 2**31
_MOST_MINUTES = 1e6  # chosen: two years
_MOST_BETA = 1e3  # chosen: far beyond what moves anything
_MOST_RATE = 1e30  # AdamW computes in fp32 with multiples of it


Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]
"""Where accelerate can log a run."""


class LoraSettings(BaseModel):
    """LoRA on all linear layers (arXiv:2106.09685), AdamW, linear warm-up then cosine decay.

    Attributes:
        rank: Rank of LoRA's matrices, at most 8,192; 16 by default.
        alpha: LoRA's updates are scaled by alpha / rank. None (default): twice the rank.
        upper_layers: Train only that many of the uppermost layers, so that the backward pass ends there. None
            (default): all. More than the base model has are an error.
        learning_rate: The highest, after warm-up. None (default): by the base model's width and the rows a step,
            2e-3 for the embedded model and 4 rows.
        epochs: Passes over the rows. None (default): from 5 for few rows to 1 for more than 1,300.
        batch_size: Rows a step. None (default): from 2 to 4, as many as have about 1,024 tokens.
        minutes: Most minutes of training: fewer steps are taken where all would take longer, by the time of the first.
            None (default): no limit.
        beta: Of preferences, as in arXiv:2305.18290: the higher, the closer answers stay to those of the model that
            training began with. 0.1 by default.
        max_length: Most tokens of a row, prompt and answer together. None (default): the base model's context
            window. Longer rows are rejected, never cut.
        schema_prompt: How prompts say the schema: ``compact``, as types in less than half of the tokens, ``json`` (JSON
            schema) or ``none``. Kept in the adapter, which is asked the same way. None (default): ``none`` where 100
            rows or more all have one schema, else ``compact``.
        thinking: ``keep``: the reasoning of answers (``Message.reasoning_content``) is trained and written before them,
            by the adapter too; a row without it is trained with an empty one. ``drop`` (default): answers alone, also
            on a base whose chat template has a switch for reasoning, which is then off.
        tool_prompt: How agents' tools and calls are written: ``own``, as the base's chat template does, or ``json``,
            as a type and JSON lists. Kept in the adapter. None (default): ``own`` where the template has a form of
            calls that can be read back, else ``json``.
        windows: Add rows of windows: sentences and paragraphs of the rows' texts, with the items that stand in them, so
            that lists do not end early; at most as many as there are rows. None (default): where answers are lists
            whose items are found in the texts, 20 or more, and reasoning is not kept, which no window has. True: an
            error where they are not.
        counterfactuals: Add rows that differ from others in one optional field, so that it is neither left out nor
            invented: without it, or with that of another row, and so the lines of the text in which its values stand;
            at most one for each row. None (default): where there are up to 1,000 rows, nearly all with answers that are
            copied from the text, no rows of windows, no ``start_from`` (which adds rows for new fields), and reasoning
            is not kept. True: an error where none can be made. False: no rows for new fields either.
        seed: Of LoRA's initial weights, the order of rows and the choice of windows, a number of 64 bits; 0 by default.
        checkpoint_steps: Steps from one checkpoint to the next. None (default): about ten checkpoints a run.
        checkpoint_layers: Keep only the inputs of the model's layers for the backward pass, which computes the rest
            again: a fraction of the memory, more time, the same gradients. None (default): where the
            estimate says that memory is short.
        piece_tokens: Most tokens in one forward pass, of a prefix that rows share once; 8,192 by default. The rows of a
            step are divided into such pieces, whose gradients add up. Fewer where the estimate says that memory is
            short, or where it runs out. A resumed run keeps the smaller pieces.
        quantization: Hold the base's layers that LoRA adapts in 4 bits a weight (``nf4``: QLoRA, arXiv:2305.14314) or
            in 8 (``int8``), for a third or half of the memory of bf16. Kept in the adapter, which is served on the base
            quantised alike. Needs the extra ``quantized``. None (default): as the base's files have them.
        device: Where to train, by PyTorch's name, such as ``cpu`` or ``cuda:1``; ``auto``: on all GPUs, which divide
            the base's layers, for one that a single GPU does not hold. None (default): the machine's best device. One
            that the machine does not have is an error, which names those that it has.
        report_to: Where to log losses and learning rates, through accelerate's trackers: any of ``tensorboard``,
            ``wandb``, ``mlflow`` and ``trackio``, whose package must be installed. None by default. TensorBoard's files
            are in the folder ``logs`` of the run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(default=16, gt=0, le=_MOST_RANK)
    alpha: int | None = Field(default=None, gt=0, le=_MOST_ALPHA)
    upper_layers: int | None = Field(default=None, gt=0)
    learning_rate: float | None = Field(default=None, gt=0, le=_MOST_RATE)
    epochs: int | None = Field(default=None, gt=0, le=_MOST_SET_EPOCHS)
    batch_size: int | None = Field(default=None, gt=0, le=_MOST_BATCH)
    minutes: float | None = Field(default=None, gt=0, le=_MOST_MINUTES)
    beta: float = Field(default=0.1, gt=0, le=_MOST_BETA)
    max_length: int | None = Field(default=None, gt=0)
    schema_prompt: SchemaPrompt | None = None
    tool_prompt: ToolPrompt | None = None
    thinking: Thinking = "drop"
    windows: bool | None = None
    counterfactuals: bool | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)
    checkpoint_steps: int | None = Field(default=None, gt=0)
    checkpoint_layers: bool | None = None
    piece_tokens: int = Field(default=PIECE_TOKENS, gt=0)
    quantization: Quantization | None = None
    device: str | None = None
    report_to: tuple[Tracker, ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that decide what is trained; the others may differ when a run is resumed."""
        return self.model_dump(
            exclude={"checkpoint_steps", "checkpoint_layers", "piece_tokens", "device", "report_to"}
        )

    @property
    def prompts(self) -> tuple[SchemaPrompt | None, Thinking, ToolPrompt | None]:
        """The settings that decide the form of the prompts."""
        return self.schema_prompt, self.thinking, self.tool_prompt

    @property
    def lora_alpha(self) -> int:
        """``alpha`` or, where it is None, twice the rank."""
        return 2 * self.rank if self.alpha is None else self.alpha

    def epochs_for(self, rows: int, counterfactuals: int = 0) -> int:
        """Epochs for a number of rows: ``epochs``, or else more for fewer rows. Training and ``check`` take these.

        Args:
            rows: Number of training rows, with those of windows.
            counterfactuals: Number of rows that were added to them and differ from one of them in one field.
        """
        return epochs_of(rows, counterfactuals) if self.epochs is None else self.epochs
