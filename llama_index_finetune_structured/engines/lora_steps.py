"""What is told of a local run: what it will take, and each finished step."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..local.train.memory import gib

if TYPE_CHECKING:
    from ..local.train.trainer import RunCost, Trainer

__all__ = ["TrainingStep", "last_step", "planned"]


class TrainingStep(NamedTuple):
    """A finished step of a run.

    Attributes:
        step: Its number, from 1.
        total_steps: Steps of the whole run, which may end earlier by its held-out rows.
        loss: Training loss of its rows.
        learning_rate: That of the step.
        seconds: What it took.
        validation_loss: Loss of the held-out rows as it was last measured, after an epoch. None: not yet.
        validation_step: After which step that was.
    """

    step: int
    total_steps: int
    loss: float
    learning_rate: float
    seconds: float
    validation_loss: float | None
    validation_step: int | None


def last_step(trainer: Trainer) -> TrainingStep:
    """The step that has just been taken."""
    entry, validation = trainer.log.steps[-1], trainer.log.validation
    measured = validation[-1] if validation else None
    return TrainingStep(
        trainer.step,
        trainer.total_steps,
        entry["loss"],
        entry["learning_rate"],
        entry["seconds"],
        measured["loss"] if measured else None,
        int(measured["step"]) if measured else None,
    )


def planned(trainer: Trainer, cost: RunCost) -> str:
    """What the run will take, for the user to see before it."""
    rows, minutes = len(trainer.rows), cost.seconds / 60
    time = f"{minutes:.0f} min" if minutes >= 1.5 else f"{cost.seconds:.0f} s"
    memory = "" if cost.memory is None else f", {gib(cost.memory)} of memory"
    memory += "" if trainer.plan is None else trainer.plan.ways
    epochs = trainer.total_steps / trainer.steps_per_epoch
    return (
        f"{rows} rows, {trainer.batch_size} a step, {epochs:.2g} epochs: {trainer.total_steps} steps, about {time}"
        f"{memory}"
    )
