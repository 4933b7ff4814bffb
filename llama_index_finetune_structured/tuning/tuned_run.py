"""The folder of a finished run of ``tune``: its record, and the rows of its versions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ..checksums import read_checked_json
from ..dataset import FinetuneDataset
from ..errors import ConfigurationError
from ..example import Example, content_hash
from ..local.model.versions import version_folder
from .run import RECORD
from .scored_run import HELD_OUT, SCORECARD, TRAIN

__all__ = ["IMPROVEMENT", "TunedRun", "hash_of", "read_record"]

IMPROVEMENT = "improvement.json"


@dataclass(frozen=True)
class TunedRun:
    """The folder of a finished run of ``tune``, and its record."""

    folder: Path
    record: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path, output_cls: type[BaseModel] | None) -> TunedRun:
        """Raises ConfigurationError where it is no such run, or one with another class."""
        try:
            record = read_checked_json(folder / RECORD)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"{folder}: holds no run of tune() ({folder / RECORD} cannot be read: {error}); give the output folder "
                "of one"
            ) from error
        if not (folder / SCORECARD).is_file():
            raise ConfigurationError(
                f"{folder}: its run is not finished; call tune() again with its rows to resume it"
            )
        name = None if output_cls is None else output_cls.__qualname__
        if record["output_cls"] != name:
            raise ConfigurationError(
                f"{folder}: was tuned with output_cls={record['output_cls']}, found {name}: its held-out rows are "
                "scored by that class; pass the same (--schema)"
            )
        return cls(folder, record)

    def train(self, version: str) -> FinetuneDataset:
        """The rows that a version was trained on."""
        folder = version_folder(self.folder, version)
        record = self.record if folder == self.folder else read_record(folder)
        return _checked_rows(folder / TRAIN, record["data"])

    def held_out(self) -> FinetuneDataset:
        """The rows that are held out from every version."""
        return _checked_rows(self.folder / HELD_OUT, self.record["held-out rows"])


def read_record(folder: Path) -> dict[str, Any]:
    """What a version after the first was made of. Raises ConfigurationError for a damaged file."""
    try:
        return read_checked_json(folder / IMPROVEMENT)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{folder / IMPROVEMENT}: cannot be read, or is damaged ({error}); restore it, or remove {folder} if its "
            "version has never served"
        ) from error


def _checked_rows(path: Path, ids: str) -> FinetuneDataset:
    rows = FinetuneDataset.load(path)
    if hash_of(rows) != ids:
        raise ConfigurationError(f"{path}: holds other rows than the run was made with; restore the file")
    return rows


def hash_of(rows: Iterable[Example]) -> str:
    """Hash of the content of rows, in their order."""
    return content_hash([row.id for row in rows])
