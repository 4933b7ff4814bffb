"""The versions of a run, and the file that names the one that serves.

A run's own folder is version ``0001``; later ones are in its folder ``versions``. ``current.json`` is replaced as a
whole, and only once the version that it names is written: whenever a process is killed, a whole version serves.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...checksums import read_checked_json, with_checksum
from ...errors import CheckpointError, ConfigurationError
from ...files import write_json

__all__ = [
    "FIRST_VERSION",
    "POINTER",
    "VERSIONS",
    "ServedVersion",
    "read_history",
    "serving_folder",
    "version_folder",
    "version_names",
    "write_history",
]

FIRST_VERSION = "0001"
POINTER, VERSIONS = "current.json", "versions"
_NAME = r"[0-9]{4,9}"


class ServedVersion(BaseModel):
    """One entry of a run's history.

    Attributes:
        version: Name of the version.
        since: From when on it has served, ISO 8601, UTC.
        reason: Why.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str = Field(pattern=f"^{_NAME}$")
    since: str = Field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    reason: str


class _Pointer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    serves: str
    history: tuple[ServedVersion, ...] = Field(min_length=1)


def version_folder(run: Path, version: str) -> Path:
    """The folder of a version."""
    return run if version == FIRST_VERSION else run / VERSIONS / version


def version_names(run: Path) -> list[str]:
    """The versions after the first that have a folder, finished or not, in their order."""
    folder = run / VERSIONS
    if not os.path.isdir(folder):  # False, too, for a path that cannot be one
        return []
    return sorted((path.name for path in folder.iterdir() if re.fullmatch(_NAME, path.name)), key=int)


def read_history(run: Path) -> tuple[ServedVersion, ...]:
    """Which versions have served, the last one serves; empty for a run that has one version only.

    Raises ConfigurationError where the file is damaged, or missing though there are versions.
    """
    path = run / POINTER
    if not os.path.isfile(path):
        if not version_names(run):
            return ()
        raise ConfigurationError(
            f"{path}: is missing, so that it is not known which version serves; restore the file, or give the folder "
            "of a version in place of the run's"
        )
    try:
        pointer = _Pointer.model_validate(read_checked_json(path))
    except (OSError, ValueError) as error:
        reason = "it is no such file" if isinstance(error, ValidationError) else error
        raise ConfigurationError(
            f"{path}: cannot be read, or is damaged ({reason}), so that it is not known which version serves; restore "
            "the file, or give the folder of a version in place of the run's"
        ) from error
    return pointer.history


def write_history(run: Path, history: Iterable[ServedVersion]) -> None:
    """Replace the history; its last entry serves from now on. Raises CheckpointError where it cannot be written."""
    entries = [entry.model_dump(mode="json") for entry in history]
    try:
        write_json(run / POINTER, with_checksum({"serves": entries[-1]["version"], "history": entries}))
    except OSError as error:
        raise CheckpointError(
            f"{run / POINTER}: could not be written ({error.strerror or error}): the same version serves as before; "
            "free disk space or fix the folder's permissions, and call again"
        ) from error


def serving_folder(run: Path) -> Path:
    """The folder of the version that serves; ``run`` itself where it has no versions.

    Raises ConfigurationError where that is not known, or the folder is gone.
    """
    history = read_history(run)
    folder = version_folder(run, history[-1].version) if history else run
    if history and not folder.is_dir():
        raise ConfigurationError(
            f"{folder}: is not there, and {run / POINTER} says that it serves; restore it, or point back to the "
            "version before it with rollback()"
        )
    return folder
