"""Training logs to TensorBoard, W&B, MLflow or trackio, through accelerate's trackers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import ConfigurationError
from ...printable import package_logger

__all__ = ["RunTrackers", "require_trackers"]

_logger = package_logger(__name__)
_PROJECT = "llama-index-finetune-structured"
_RUN_NAMES = {"wandb": "name", "trackio": "name", "mlflow": "run_name"}  # keywords of their packages
_LOGS = "logs"


def require_trackers(names: Sequence[str]) -> None:
    """Raise ConfigurationError where a tracker's package is not installed."""
    from accelerate.tracking import get_available_trackers

    available = {str(name) for name in get_available_trackers()} if names else set()
    for name in names:
        if name not in available:
            raise ConfigurationError(
                f"report_to: the package of {name!r} is not installed: pip install {name}, or leave it out"
            )


class RunTrackers:
    """The trackers of a run in ``folder``. What one of them raises while training is logged, and ends that one alone.

    ``logged``: held-out losses that an interrupted run has logged before. Raises ConfigurationError where a tracker
    does not start.
    """

    def __init__(
        self, names: Sequence[str], folder: Path, settings: Mapping[str, Any], *, logged: int = 0
    ) -> None:
        self._trackers, self._logged = dict[str, Any](), logged
        for name in names:
            try:
                self._trackers[name] = _started(name, folder, settings)
            except Exception as error:  # of any kind: of its package, of the network
                self.finish()
                raise ConfigurationError(
                    f"report_to: {name!r} does not start ({type(error).__name__}: {error}): see its package's "
                    "documentation, or leave it out"
                ) from error

    def log(self, entry: Mapping[str, float], validation: Sequence[Mapping[str, float]]) -> None:
        """Log a step, after the held-out losses of steps before it."""
        self.log_validation(validation)
        self._log({name: value for name, value in entry.items() if name != "step"}, int(entry["step"]))

    def log_validation(self, validation: Sequence[Mapping[str, float]]) -> None:
        """Log those held-out losses that have not been logged."""
        for entry in validation[self._logged :]:
            self._log({"validation_loss": entry["loss"]}, int(entry["step"]))
        self._logged = len(validation)

    def finish(self) -> None:
        """Write what is left, and end the trackers."""
        self._each(lambda tracker: tracker.finish())
        self._trackers.clear()

    def _log(self, values: dict[str, float], step: int) -> None:
        self._each(lambda tracker: tracker.log(values, step=step))

    def _each(self, do: Callable[[Any], object]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                do(tracker)
            except Exception as error:  # as above; the run is worth more than its log
                _logger.warning("report_to: %s failed, and logs no more of this run: %s", name, error)
                del self._trackers[name]


def _started(name: str, folder: Path, settings: Mapping[str, Any]) -> Any:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    made = LOGGER_TYPE_TO_CLASS[name]
    if made.requires_logging_directory:
        tracker = made(_LOGS, folder)
    else:
        tracker = made(_PROJECT, **{_RUN_NAMES[name]: folder.resolve().name})
    if hasattr(tracker, "start"):  # older versions start when they are made
        tracker.start()
    plain = (str, int, float, type(None))
    tracker.store_init_configuration(
        {key: value if isinstance(value, plain) else str(value) for key, value in settings.items()}
    )
    return tracker
