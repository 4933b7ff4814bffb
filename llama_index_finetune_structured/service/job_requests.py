"""Requests for fine-tuning jobs as OpenAI's protocol has them, and the job objects of the replies."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .database import Record

__all__ = [
    "ACTIVE",
    "ENDED",
    "CreateJob",
    "DpoHyperparameters",
    "Hyperparameters",
    "described_event",
    "described_job",
]

ENDED = ("succeeded", "failed", "cancelled")
"""Statuses after which nothing of a job changes."""
ACTIVE = ("validating_files", "running")
"""Statuses of a job that a worker has begun and not left."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Hyperparameters(_Body):
    """The settings of a job's training. ``learning_rate_multiplier`` is of the rate that ``auto`` takes."""

    n_epochs: Literal["auto"] | Annotated[int, Field(strict=True, ge=1, le=50)] = "auto"
    batch_size: Literal["auto"] | Annotated[int, Field(strict=True, ge=1, le=256)] | None = "auto"
    learning_rate_multiplier: Literal["auto"] | Annotated[float, Field(gt=0, le=1000)] = "auto"


class DpoHyperparameters(Hyperparameters):
    """Those of preferences. ``beta``: as in ``LoraSettings``."""

    beta: Literal["auto"] | Annotated[float, Field(gt=0, le=2)] = "auto"


class _Supervised(_Body):
    hyperparameters: Hyperparameters = Hyperparameters()


class _Dpo(_Body):
    hyperparameters: DpoHyperparameters = DpoHyperparameters()


class _Method(_Body):
    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: _Supervised | None = None
    dpo: _Dpo | None = None
    reinforcement: dict[str, Any] | None = None


class CreateJob(_Body):
    """The body of ``POST /v1/fine_tuning/jobs``."""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    training_file: Annotated[str, Field(min_length=1, max_length=200)]
    validation_file: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    hyperparameters: Hyperparameters | None = None
    method: _Method | None = None
    # A part of the model's name, whose parts are separated by colons.
    suffix: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] | None = None
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**31)] | None = None
    integrations: list[Any] | None = None
    metadata: (
        Annotated[
            dict[
                Annotated[str, Field(max_length=64)],
                Annotated[str, Field(max_length=512)],
            ],
            Field(max_length=16),
        ]
        | None
    ) = None


def described_job(row: Record, organization: str) -> dict[str, Any]:
    """The job object of the protocol; hyperparameters are those that training took, as far as they are known."""
    taken = row.taken or {}
    hyperparameters = {name: taken.get(name, asked) for name, asked in row.hyperparameters.items()}
    return {
        "object": "fine_tuning.job",
        "id": row.id,
        "created_at": row.created_at,
        "model": row.start_model or row.model,
        "organization_id": organization,
        "status": row.status,
        "training_file": row.training_file,
        "validation_file": row.validation_file,
        "hyperparameters": hyperparameters,
        "method": {"type": row.method, row.method: {"hyperparameters": hyperparameters}},
        "fine_tuned_model": row.fine_tuned_model,
        "result_files": [] if row.result_file is None else [row.result_file],
        "trained_tokens": row.trained_tokens if row.status in ENDED else None,
        "finished_at": row.finished_at,
        "estimated_finish": row.estimated_finish if row.status == "running" else None,
        "error": row.error,
        "seed": row.seed,
        "integrations": [],
        "metadata": row.metadata,
        "user_provided_suffix": row.suffix,
    }


def described_event(row: Record) -> dict[str, Any]:
    """The event object of the protocol."""
    names = ("id", "created_at", "level", "message", "type")
    described = {name: row._mapping[name] for name in names}
    return {"object": "fine_tuning.job.event", **described, "data": row.data or {}}
