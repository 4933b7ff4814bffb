"""Find the adapter and the training run behind a model named on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checksums import read_checked_json
from ..errors import ConfigurationError
from ..local.model.adapter import AdapterCard, adapter_or_none, read_card

__all__ = ["Trained", "find_trained", "loss_curve_of", "training_of"]

_LOG = "training_log.json"
_UNREADABLE = (OSError, ValueError, RecursionError, KeyError, TypeError)


@dataclass(frozen=True)
class Trained:
    """An adapter, its card and, if known, the folder of its training run."""

    adapter: Path
    card: AdapterCard
    run: Path | None


def find_trained(model: str) -> Trained | None:
    """The adapter in folder ``model``, or None for a base model.

    Raises ConfigurationError for an unfinished run, or damaged files.
    """
    adapter = adapter_or_none(Path(model))
    if adapter is None:
        return None
    run = adapter.parent if (adapter.parent / _LOG).is_file() else None
    return Trained(adapter, read_card(adapter), run)


def loss_curve_of(run: Any) -> Sequence[Mapping[str, Any]]:
    """Step, loss and validation loss of a run's training log; empty where there is none."""
    path = Path(run) / _LOG if isinstance(run, str) else None
    if path is None or not path.is_file():
        return []
    try:
        log = read_checked_json(path)
        held_out = [{"step": entry["step"], "validation_loss": entry["loss"]} for entry in log["validation"]]
        return [*log["steps"], *held_out]
    except _UNREADABLE as error:
        raise ConfigurationError(f"{path}: damaged, or not the log of a training run; remove it") from error


def training_of(run: Any) -> tuple[float, int] | None:
    """Hours of training and number of training examples of a run's folder; None where there is none."""
    # of the run itself: its folder may be one whose later version serves
    trained = find_trained(str(Path(run) / "adapter")) if isinstance(run, str) else None
    if trained is None or trained.run is None:
        return None
    return sum(float(entry.get("seconds", 0)) for entry in loss_curve_of(run)) / 3600, trained.card.rows
