"""The folder of a local run: its identity, whether it is finished and whole, its log and its state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from ..checksums import read_checked_json, with_checksum
from ..errors import CheckpointError, ConfigurationError
from ..files import read_json, write_json
from ..local.model.adapter import CARD, read_card
from ..local.model.base_files import file_sha256
from ..local.model.lora_files import ADAPTER_CONFIG, WEIGHTS
from ..printable import package_logger

if TYPE_CHECKING:
    from ..local.train.trainer import TrainingLog

__all__ = ["LoraJob", "LoraRunFolder"]

_logger = package_logger(__name__)
_RUN, _LOG = "run.json", "training_log.json"
_FILES = "adapter sha256"  # in the log: checksum by name of the adapter's files
_DATE = "prompt date"


class LoraJob(BaseModel):
    """State of a local run.

    Attributes:
        status: ``new``, ``resumable`` (there is a checkpoint; also where the adapter is damaged) or ``succeeded``.
        output_dir: Folder of the run.
        adapter: Folder of the adapter, once finished.
        steps: Optimizer steps taken.
        loss: Training loss of the last step.
        validation_loss: Loss of the held-out rows with the weights that are kept, the lowest.
        seconds: Of all training steps together.
    """

    model_config = ConfigDict(frozen=True)

    status: str
    output_dir: Path
    adapter: Path | None = None
    steps: int = 0
    loss: float | None = None
    validation_loss: float | None = None
    seconds: float = 0.0


class LoraRunFolder:
    """A run's folder ``path``.

    ``identity``: hashes of data and base, and the settings by name. ``fingerprint``: its hash.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], fingerprint: str) -> None:
        self.path, self._identity, self._fingerprint = path, dict(identity), fingerprint
        self.adapter, self.checkpoints = path / "adapter", path / "checkpoints"

    def is_finished(self) -> bool:
        """Whether this run's adapter is there and as it was written. What is damaged is logged as a warning.

        Raises ConfigurationError for an adapter of another run, a folder that cannot be read, or one that holds a file
        of another program under the name of one of a run.
        """
        self._require_own()
        try:
            if not self._holds_adapter():
                return False
            damage = self._damage()
        except OSError as error:
            raise ConfigurationError(
                f"{self.path}: cannot be read ({error.strerror}); choose another output folder"
            ) from error
        if damage is not None:
            _logger.warning(
                "%s: finetune() writes the adapter again, from the newest whole checkpoint", damage
            )
        return damage is None

    def another_run(self, what: str) -> ConfigurationError:
        """The error for ``what`` of another run in this folder; it names what differs."""
        return ConfigurationError(
            f"{what} of another run ({self._differences()}): choose another output folder, or remove that one"
        )

    def require_own_checkpoints(self) -> None:
        """Raise ConfigurationError for checkpoints that no record says are of this run.

        For a run that starts at its first step: it found none of them whole, and would replace them.
        """
        from ..local.train.checkpoints import holds_checkpoints

        if holds_checkpoints(self.checkpoints) and not self._is_on_record():
            raise self.another_run(f"{self.checkpoints}: holds checkpoints that cannot be used, and may be")

    def prompt_date(self, today: str | None) -> str | None:
        """The date in the prompts, where the chat template prints one: of the run's start, also when resumed."""
        try:
            started = self._started()
        except FileNotFoundError:
            return today
        except (OSError, ValueError) as error:
            _logger.warning("%s is damaged (%s), and is written again", self.path / _RUN, error)
            return today
        return today if today is None or not self._is_this(started) else started.get(_DATE) or today

    def write_identity(self, date: str | None) -> None:
        """Write down what the run is of, so that the error for another run can name what differs."""
        with self._writing(_RUN) as path:
            write_json(path, with_checksum({**self._identity, _DATE: date}))

    def write_log(self, log: TrainingLog, settings: Mapping[str, Any]) -> None:
        """Write the log and the checksums of the adapter's files, which marks the run as finished."""
        content = {"steps": log.steps, "validation": log.validation, "settings": dict(settings)}
        with self._writing(_LOG) as path:
            files = {name: file_sha256(self.adapter / name) for name in (WEIGHTS, ADAPTER_CONFIG, CARD)}
            write_json(path, with_checksum({**content, _FILES: files}))

    def figures(self) -> dict[str, Any]:
        """Steps, losses and seconds of the finished run."""
        return _figures(read_checked_json(self.path / _LOG))

    def checkpoint_figures(self) -> dict[str, Any] | None:
        """Steps, losses and seconds until the newest whole checkpoint; None without one."""
        from ..local.train.checkpoints import newest_checkpoint

        newest = newest_checkpoint(self.checkpoints)
        return None if newest is None else _figures(newest[1]["log"])

    def _require_own(self) -> None:
        for path in (self.path / _RUN, self.path / _LOG):
            try:
                content = read_json(path)
            except (OSError, ValueError):  # none, or a damaged one, which is written again
                continue
            if content.keys().isdisjoint({*self._identity, "steps"}):
                raise ConfigurationError(
                    f"{path}: was not written by a training run, and would be lost; choose another output folder"
                )

    def _holds_adapter(self) -> bool:
        """Whether there is an adapter of this run, whole or damaged. Raises ConfigurationError for anything else."""
        if not self.adapter.exists() or (self.adapter.is_dir() and not any(self.adapter.iterdir())):
            return False
        if self._wrote_adapter():
            return True
        if not (self.adapter / ADAPTER_CONFIG).is_file():
            raise ConfigurationError(
                f"{self.adapter}: exists and holds no adapter; choose another output folder"
            )
        if read_card(self.adapter).fingerprint != self._fingerprint:
            raise self.another_run(f"{self.adapter}: holds the adapter")
        return True

    def _wrote_adapter(self) -> bool:
        """Whether this run is on record as the writer of the adapter's folder, which holds no files of others.

        Decided without the adapter's own files, for they may be damaged.
        """
        try:
            files = read_checked_json(self.path / _LOG)[_FILES]
        except (OSError, ValueError, KeyError):
            return False
        return self._is_on_record() and self.adapter.is_dir() and _checked_names(self.adapter) <= files.keys()

    def _is_on_record(self) -> bool:
        """Whether ``run.json`` says that the folder is of this run."""
        try:
            run = self._started()
        except (OSError, ValueError):
            return False
        return self._is_this(run)

    def _is_this(self, run: Mapping[str, Any]) -> bool:
        return all(run.get(name) == value for name, value in self._identity.items())

    def _damage(self) -> str | None:
        """What is damaged of the finished run: its log, or a file of its adapter; None where all is whole."""
        log = self.path / _LOG
        try:
            files: dict[str, str] = read_checked_json(log)[_FILES]
        except FileNotFoundError:
            return f"{log} is missing"
        except (OSError, ValueError, KeyError) as error:
            return f"{log} is damaged ({error})"
        for name, checksum in files.items():
            path = self.adapter / name
            if not path.is_file():
                return f"{path} is missing"
            if file_sha256(path) != checksum:
                return f"{path} is damaged (it does not match its checksum)"
        return None

    def _differences(self) -> str:
        """What differs between the folder's run and this one: data and base by name, settings with both values."""
        try:
            there = self._started()
            differing = [
                name if name in ("data", "base model") else f"{name} ({there[name]} there, {value} here)"
                for name, value in self._identity.items()
                if there[name] != value
            ]
        except (OSError, ValueError, KeyError):
            differing = []
        return f"differs in {', '.join(differing)}" if differing else "data, base model or settings differ"

    def _started(self) -> dict[str, Any]:
        """What the folder's run is of. Raises OSError, or ValueError for a damaged file."""
        return read_checked_json(self.path / _RUN)

    @contextmanager
    def _writing(self, name: str) -> Iterator[Path]:
        path = self.path / name
        try:
            yield path
        except OSError as error:
            raise CheckpointError(
                f"{path}: could not be written ({error}): free disk space or fix the folder's permissions "
                "and run finetune() again"
            ) from error


def _checked_names(adapter: Path) -> set[str]:
    """The files of an adapter's folder but its README, which may be edited."""
    return {path.name for path in adapter.iterdir() if path.name != "README.md"}


def _figures(log: Mapping[str, Any]) -> dict[str, Any]:
    """A log's figures, as fields of LoraJob."""
    steps, validation = log["steps"], log["validation"]
    return {
        "steps": len(steps),
        "loss": steps[-1]["loss"] if steps else None,
        "validation_loss": min((entry["loss"] for entry in validation), default=None),
        "seconds": sum(entry["seconds"] for entry in steps),
    }
