"""Atomic output of exports: complete or absent, and never in place of something else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ...errors import ConfigurationError, EngineError
from ...files import creating

__all__ = ["atomic_output"]


@contextmanager
def atomic_output(target: Path) -> Iterator[Path]:
    """Yield a path to write a file or folder at; it is renamed to ``target`` when the block succeeds.

    Raises ConfigurationError where ``target`` exists, EngineError where writing fails or another process writes it.
    """
    try:
        with creating(target) as path:
            yield path
    except FileExistsError as error:
        raise ConfigurationError(
            f"{target}: exists already; choose another output, or remove it first"
        ) from error
    except BlockingIOError as error:
        raise EngineError(
            f"{target}: {error.strerror}: wait until it has ended, or write elsewhere"
        ) from error
    except (OSError, UnicodeError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise EngineError(
            f"{target}: could not be written ({reason}): free disk space, or write elsewhere"
        ) from error
