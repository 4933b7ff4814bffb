"""Progress bars and messages that never end a run: where stderr is missing, closed or broken, they are not shown."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from tqdm.auto import tqdm

from .printable import printable

__all__ = ["progress_bar", "progress_line"]


class _Stderr:
    """The process's stderr at each write, whose failures are ignored. A program without a console has none."""

    encoding = property(lambda self: getattr(sys.stderr, "encoding", "utf-8"))

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()

    def isatty(self) -> bool:
        with suppress(ValueError, AttributeError):
            return sys.stderr.isatty()
        return False

    def fileno(self) -> int:
        return sys.stderr.fileno()


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> Any:
    """tqdm's progress bar over ``iterable`` or, without one, to be updated; ``options`` as tqdm's.

    ``$TQDM_DISABLE`` turns it off.
    """
    if options.get("disable") is False:
        options.pop("disable", None)  # given, it would count more than the variable
    return tqdm(iterable, file=_Stderr(), **options)


def progress_line(text: str) -> None:
    """Print a message where the bars are shown."""
    _Stderr().write(f"{printable(text)}\n")
