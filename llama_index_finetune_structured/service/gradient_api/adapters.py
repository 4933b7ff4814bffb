"""Adapters of Gradient's protocol: their rows in the database, and a folder for each of their versions.

A version is the adapter after so many steps. The row names the one that serves: a folder that no row names is of a step
that was never finished.
"""

from __future__ import annotations

import shutil
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from time import time_ns
from typing import Any

from sqlalchemy import delete, insert, select, update

from ..database import Database, Record, gradient_adapters, now
from ..errors import ApiError
from ..models import ServedModel, require_room_for_model
from ..settings import ServiceSettings

__all__ = ["GradientAdapters", "base_model_id", "unknown_adapter", "update_time"]

_BASES = uuid.UUID("6f2c9a52-2f6b-4f0e-9d3c-3c1f5f6b7a10")  # of this service alone
_WEIGHTS = "adapter"  # folder in a version's


def base_model_id(name: str) -> str:
    """The id of the base model of that name, in every service."""
    return f"{uuid.uuid5(_BASES, name)}_base_ml_model"


def unknown_adapter(adapter_id: str) -> ApiError:
    """The error for an id that the key has no adapter under; that of another key's is the same."""
    return ApiError(404, f"No such model adapter: {adapter_id[:200]!r}", type="unknownModelAdapter")


def update_time(adapter: Record) -> str:
    """When the adapter was created or last trained, as the protocol writes it: each step has a later one."""
    seconds, microseconds = divmod(adapter.updated_at, 10**6)
    time = datetime.fromtimestamp(seconds, timezone.utc).replace(microsecond=microseconds)
    return time.isoformat(timespec="microseconds")


class GradientAdapters:
    """The adapters of a service. A version that is replaced or deleted is removed once no request uses it.

    Thread-safe.
    """

    def __init__(self, database: Database, settings: ServiceSettings) -> None:
        self._database, self._settings = database, settings
        self._served = Counter[Path]()  # versions by the requests that use them
        self._changing = threading.Lock()

    def list_adapters(self, owner: str) -> list[Record]:
        """The adapters of a key, oldest first."""
        table = gradient_adapters
        with self._database.read() as connection:
            rows = connection.execute(select(table).where(table.c.owner == owner).order_by(table.c.number))
            return list(rows)

    def find(self, adapter_id: str, owner: str) -> Record:
        """The adapter of that id. Raises ApiError (404) where the key has none."""
        row = self._row(adapter_id)
        if row is None or row.owner != owner:
            raise unknown_adapter(adapter_id)
        return row

    def create(self, owner: str, name: str, base: str, lora: dict[str, Any]) -> str:
        """Make an adapter without weights; returns its id. ``lora``: its settings. ``base``: its base's name.

        Raises ApiError (429) where the key has as many models as it may.
        """
        adapter_id = f"{uuid.uuid4()}_model_adapter"
        row = {
            "id": adapter_id,
            "owner": owner,
            "created_at": now(),
            "name": name,
            "base": base,
            "base_path": self._settings.bases[base],
            "lora": lora,
            "steps": 0,
            "updated_at": time_ns() // 1000,
        }
        with self._database.write() as connection:
            require_room_for_model(connection, owner, self._settings.max_models)
            connection.execute(insert(gradient_adapters).values(row))
        return adapter_id

    def commit(self, adapter: Record) -> bool:
        """Let the version after the next step of ``adapter`` serve; False where it was deleted meanwhile."""
        table = gradient_adapters
        values = {"steps": adapter.steps + 1, "updated_at": max(time_ns() // 1000, adapter.updated_at + 1)}
        where = (table.c.id == adapter.id, table.c.steps == adapter.steps)
        with self._database.write() as connection:
            is_there = connection.execute(update(table).where(*where).values(values)).rowcount == 1
        self.prune(adapter.id)
        return is_there

    def remove(self, adapter_id: str, owner: str) -> None:
        """Remove an adapter. Raises ApiError (404) where the key has none of that id."""
        table = gradient_adapters
        with self._database.write() as connection:
            where = (table.c.id == adapter_id, table.c.owner == owner)
            if not connection.execute(delete(table).where(*where)).rowcount:
                raise unknown_adapter(adapter_id)
        self.prune(adapter_id)

    def version(self, adapter_id: str, steps: int) -> Path:
        """The folder of an adapter, of the database, after so many steps."""
        return self._settings.gradient_folder / adapter_id / str(steps)

    def base(self, adapter: Record) -> ServedModel:
        """The base of an adapter, as a model that is served."""
        return ServedModel(adapter.base, adapter.base_path, None, adapter.created_at, adapter.owner)

    @contextmanager
    def serving(self, adapter_id: str, owner: str) -> Iterator[ServedModel]:
        """The version that serves now, which stays on disk until the block ends; an untrained one is the base alone.

        Raises ApiError (404) where the key has no adapter of that id.
        """
        with self._changing:  # else the version could be removed before it is counted
            adapter = self.find(adapter_id, owner)
            version = self.version(adapter.id, adapter.steps)
            self._served[version] += 1
        weights = version / _WEIGHTS if adapter.steps else None
        try:
            yield ServedModel(adapter.id, adapter.base_path, weights, adapter.created_at, adapter.owner)
        finally:
            with self._changing:
                self._served[version] -= 1
                if not self._served[version]:
                    del self._served[version]
            self.prune(adapter.id)

    def prune(self, adapter_id: str) -> None:
        """Remove those versions of an adapter that no request uses and that do not serve."""
        folder = self._settings.gradient_folder / adapter_id
        with self._changing:
            adapter, served = self._row(adapter_id), set(self._served)
        # None of these can be served again: the row never goes back to them.
        for version in folder.glob("[0-9]*"):
            if version not in served and (adapter is None or int(version.name) < adapter.steps):
                shutil.rmtree(version, ignore_errors=True)
        if adapter is None:
            with suppress(OSError):  # a version is still used, or a step is at work
                folder.rmdir()

    def clean_up(self) -> None:
        """Remove what an earlier server left: versions of unfinished steps, and those that were in use at its end."""
        for folder in self._settings.gradient_folder.glob("*_model_adapter"):
            adapter = self._row(folder.name)
            for version in folder.iterdir():
                if adapter is None or version.name != str(adapter.steps):
                    shutil.rmtree(version, ignore_errors=True)
            self.prune(folder.name)

    def _row(self, adapter_id: str) -> Record | None:
        table = gradient_adapters
        with self._database.read() as connection:
            return connection.execute(select(table).where(table.c.id == adapter_id)).one_or_none()
