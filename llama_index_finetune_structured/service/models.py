"""The models that are served: base and embedding models of the settings, and those that jobs tuned; ``/v1/models``."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from sqlalchemy import Connection, delete, func, insert, select

from .database import Database, Record, gradient_adapters, jobs, models, now
from .errors import ApiError, invalid, not_found
from .job_requests import ENDED
from .keys import ApiKey, CurrentKey, scoped
from .settings import ServiceSettings

__all__ = ["ModelStore", "ServedModel", "models_of", "require_room_for_model", "router"]

_BASE_OWNER = "system"
_EMBEDDING_OWNER = "embeddings"  # by which clients tell embedding models in the list
_ADAPTER = "adapter"  # its folder in a job's run


@dataclass(frozen=True)
class ServedModel:
    """A model that clients may name.

    ``base``: as ``base_model`` of ``LoraLLM``; ``adapter``: the folder of its adapter, None for a base model.
    ``owner``: the id of the key that made it, ``system`` for a base model, which all keys see.
    """

    name: str
    base: str
    adapter: Path | None
    created: int
    owner: str


class ModelStore:
    """The base models of the settings, and the tuned ones in the database."""

    def __init__(self, database: Database, settings: ServiceSettings) -> None:
        self._database, self._settings = database, settings
        self._started = now()

    def list_models(self, owner: str | None = None) -> list[ServedModel]:
        """The base models and then the tuned ones, oldest first; ``owner``: only those that this key sees."""
        where = () if owner is None else (models.c.owner == owner,)
        with self._database.read() as connection:
            tuned = connection.execute(select(models).where(*where).order_by(models.c.number)).all()
        return [*map(self._base, self._settings.bases), *map(self._tuned, tuned)]

    def find(self, name: str, owner: str) -> ServedModel:
        """The model of that name, which writes text and which the key sees.

        Raises ApiError: 404 where there is none, 400 for an embedding model.
        """
        self.refuse_embedding_model(name)
        if name in self._settings.bases:
            return self._base(name)
        with self._database.read() as connection:
            where = (models.c.id == name, models.c.owner == owner)
            row = connection.execute(select(models).where(*where)).one_or_none()
        if row is None:
            raise not_found("model", name, "model")
        return self._tuned(row)

    def refuse_embedding_model(self, name: str) -> None:
        """Raise ApiError (400) for the name of an embedding model."""
        if name in self._settings.embeddings:
            raise invalid(
                f"{name!r} is an embedding model: it answers /v1/embeddings alone, and is neither asked for texts nor "
                f"fine-tuned. Base models: {', '.join(self._settings.bases)}.",
                "model",
                code="unsupported_model",
            )

    def described(self, owner: str) -> list[dict[str, Any]]:
        """The model objects of the protocol, of all models that the key sees: embedding models are after the bases."""
        tuned = [model for model in self.list_models(owner) if model.adapter is not None]
        return [
            *(_described(self._base(name)) for name in self._settings.bases),
            *map(self._embedding, self._settings.embeddings),
            *map(_described, tuned),
        ]

    def describe(self, name: str, owner: str) -> dict[str, Any]:
        """The model object of one. Raises ApiError (404) where the key sees none of that name."""
        is_embedding = name in self._settings.embeddings
        return self._embedding(name) if is_embedding else _described(self.find(name, owner))

    def base_name(self, name: str, owner: str) -> str:
        """The name of the base of a tuned model that the key sees. Raises ApiError (404) where there is none."""
        with self._database.read() as connection:
            where = (models.c.id == name, models.c.owner == owner)
            base: str | None = connection.scalar(select(models.c.base).where(*where))
        if base not in self._settings.bases:
            raise not_found("model", name, "model")
        return base

    def register(self, connection: Connection, job: Record, name: str) -> None:
        """Add the model that a job tuned, in the job's own transaction."""
        row = {
            "id": name,
            "owner": job.owner,
            "created_at": now(),
            "job_id": job.id,
            "base": job.model,
            "base_path": self._settings.bases[job.model],
        }
        connection.execute(insert(models).values(row))

    def remove(self, name: str, owner: str) -> None:
        """Remove a tuned model, and the run with its weights. Raises ApiError where that is not the key's to do."""
        if name in self._settings.embeddings or self.find(name, owner).adapter is None:
            message = "A model of the server's own settings cannot be deleted."
            raise ApiError(403, message, param="model", code="base_model")
        with self._database.write() as connection:
            where = (models.c.id == name, models.c.owner == owner)
            job = connection.scalar(delete(models).where(*where).returning(models.c.job_id))
        if job is not None:
            shutil.rmtree(self._settings.runs_folder / job, ignore_errors=True)

    def _base(self, name: str) -> ServedModel:
        return ServedModel(name, self._settings.bases[name], None, self._started, _BASE_OWNER)

    def _embedding(self, name: str) -> dict[str, Any]:
        return _object(name, self._started, _EMBEDDING_OWNER)

    def _tuned(self, row: Record) -> ServedModel:
        adapter = self._settings.runs_folder / row.job_id / _ADAPTER
        return ServedModel(row.id, row.base_path, adapter, row.created_at, row.owner)


router = APIRouter(prefix="/v1/models", tags=["models"])


def _described(model: ServedModel) -> dict[str, Any]:
    return _object(model.name, model.created, model.owner)


def _object(name: str, created: int, owner: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": owner}


def models_of(request: Request) -> ModelStore:
    """The models of the service that a request is for."""
    store: ModelStore = request.app.state.models
    return store


def require_room_for_model(connection: Connection, owner: str, most: int) -> None:
    """Raise ApiError (429) where a key has ``most`` models, adapters and jobs that will be models."""
    kept = (models.c.owner == owner, gradient_adapters.c.owner == owner)
    made = (jobs.c.owner == owner) & jobs.c.status.not_in(ENDED)
    counts = (select(func.count()).where(where) for where in (*kept, made))
    if sum(connection.execute(count).scalar_one() for count in counts) >= most:
        raise ApiError(
            429,
            f"This key has {most:,} models, those of unfinished jobs included, as many as it may have: delete some.",
            code="insufficient_quota",
            type="insufficient_quota",
        )


@router.get("")
def list_models(request: Request, key: CurrentKey) -> dict[str, Any]:
    """The models that the key sees."""
    return {"object": "list", "data": models_of(request).described(key.id)}


@router.get("/{model:path}")
def retrieve_model(request: Request, key: CurrentKey, model: str) -> dict[str, Any]:
    """One model."""
    return models_of(request).describe(model, key.id)


@router.delete("/{model:path}")
def delete_model(
    request: Request, key: Annotated[ApiKey, Depends(scoped("fine_tuning"))], model: str
) -> dict[str, Any]:
    """Delete a tuned model."""
    models_of(request).remove(model, key.id)
    return {"id": model, "object": "model", "deleted": True}
