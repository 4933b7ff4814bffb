"""Types of the fields that say where a model's files are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

__all__ = ["AdapterFolder", "BaseModelName"]


def _absolute(path: Path | None) -> Path | None:
    """The path as it is now: the weights are loaded later, perhaps in another working folder or process."""
    return None if path is None else path.absolute()


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


AdapterFolder = Annotated[Path | None, AfterValidator(_absolute)]
BaseModelName = Annotated[str, BeforeValidator(_as_text)]
