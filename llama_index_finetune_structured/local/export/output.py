"""Atomic output of exports: complete or absent, and never in place of something else."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ...errors import ConfigurationError, EngineError
from ...files import UNFINISHED, sync_folder

__all__ = ["atomic_output"]


@contextmanager
def atomic_output(target: Path) -> Iterator[Path]:
    """Yield a path to write a file or folder at; it is renamed to ``target`` when the block succeeds.

    Raises ConfigurationError where ``target`` exists, EngineError where writing fails.
    """
    if target.exists():
        raise ConfigurationError(f"{target}: exists already; choose another output, or remove it first")
    holder: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=target.parent))
        path = holder / target.name
        yield path
        if path.is_dir():
            sync_folder(path)
        sync_folder(holder)
        os.replace(path, target)
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise EngineError(
            f"{target}: could not be written ({reason}): free disk space, or write elsewhere"
        ) from error
    finally:
        if holder is not None:
            shutil.rmtree(holder, ignore_errors=True)
