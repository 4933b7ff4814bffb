"""Which version of a run serves: the promotion of a new one, and the way back."""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigurationError
from ..local.model.adapter import find_adapter, read_card
from ..local.model.versions import (
    FIRST_VERSION,
    VERSIONS,
    ServedVersion,
    read_history,
    version_folder,
    write_history,
)
from ..locks import locked_folder

__all__ = ["begin_history", "promote", "rollback"]


def begin_history(run: Path) -> tuple[ServedVersion, ...]:
    """The history of a run; of one that has had one version, it is written with that version."""
    with locked_folder(run / VERSIONS):
        if not (history := read_history(run)):
            history = (ServedVersion(version=FIRST_VERSION, reason="the first version"),)
            write_history(run, history)
        return history


def promote(run: Path, version: str, *, instead_of: str, reason: str) -> bool:
    """Let a whole version serve from now on; False, with nothing done, where ``instead_of`` does not serve any more."""
    with locked_folder(run / VERSIONS):  # not the lock of the run, which training holds for hours
        history = read_history(run)
        if history[-1].version != instead_of:
            return False
        write_history(run, [*history, ServedVersion(version=version, reason=reason)])
        return True


def rollback(run: str | Path) -> str:
    """Let the version serve that served before the one that serves now.

    LLMs that follow the run, and those made by ``LoraLLM.from_adapter(run)`` from now on, answer with it. Called
    again, it goes back one more. Nothing is removed: the version gone back from stays in its folder, and the history
    in ``current.json`` says when and why each one served. It may be called while ``improve`` trains.

    Args:
        run: The run's folder.

    Returns:
        The name of the version that serves now.

    Raises:
        ConfigurationError: There is no version before; or it, or ``current.json``, is damaged or missing.
        EngineError: Another process changes the version at this moment.
    """
    folder = Path(run)
    _version_before(folder)  # before a folder for the lock is made
    with locked_folder(folder / VERSIONS):
        now, before = _version_before(folder)
        read_card(find_adapter(version_folder(folder, before) / "adapter"))  # raises where it is damaged
        entry = ServedVersion(version=before, reason=f"rollback from version {now}")
        write_history(folder, [*read_history(folder), entry])
    return before


def _version_before(run: Path) -> tuple[str, str]:
    """The version that serves, and the one that served when it was promoted."""
    served = [entry.version for entry in read_history(run)]
    first = served.index(served[-1]) if served else 0
    if not first:
        raise ConfigurationError(
            f"{run}: has no version before the one that serves; improve() makes versions of a run of tune()"
        )
    return served[-1], served[first - 1]
