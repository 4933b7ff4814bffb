"""The log of server and workers: one JSON object a line on standard error, without content of requests or files.

Text that is not the service's own may be content: of a warning or of a library's message, its place alone is logged,
and what libraries print is left out.
"""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import datetime, timezone
from typing import Any, TextIO

from ..printable import package_logger

__all__ = ["json_log", "log_entry", "log_failure"]

_log = package_logger(__name__)
_OWN = (__package__, "uvicorn")  # loggers whose messages hold no content
_MOST_PLACES = 8


def log_entry(event: str, level: int = logging.INFO, **values: Any) -> None:
    """Log an event with values that JSON has."""
    entry = {"event": event, **values}
    _log.log(level, "%s", json.dumps(entry), extra={"entry": entry})


def log_failure(error: BaseException, where: str) -> None:
    """Log a failure of the server's own: its class and where it was raised, never its text, which may be content."""
    log_entry("failure", logging.ERROR, where=where, **_raised(error))


def _raised(error: BaseException) -> dict[str, Any]:
    places = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    return {"error": type(error).__name__, "raised": places[-_MOST_PLACES:]}


class _JsonLines(logging.Formatter):
    """A record as a line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        made = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        entry: dict[str, Any] = getattr(record, "entry", None) or _entry(record)
        return json.dumps({"time": made, "level": record.levelname.lower(), **entry})


def _entry(record: logging.LogRecord) -> dict[str, Any]:
    entry: dict[str, Any] = {"event": "message", "logger": record.name}
    if any(record.name == name or record.name.startswith(f"{name}.") for name in _OWN):
        entry["message"] = record.getMessage()
    else:
        entry["place"] = f"{record.pathname}:{record.lineno}"
    if record.exc_info and record.exc_info[1] is not None:
        entry |= _raised(record.exc_info[1])
    return entry


class _Lines(logging.StreamHandler[Any]):
    """A handler that never ends a run, nor writes anything else: a line that cannot be written is lost."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class _Nowhere(io.TextIOBase):
    """Takes text and keeps none. It is never closed: handlers of libraries hold it."""

    def write(self, text: str) -> int:
        return len(text)


_NOWHERE = _Nowhere()


@contextmanager
def json_log() -> Iterator[None]:
    """Log to standard error until the block ends, and keep all other text of this process from it.

    What the system or a library in C writes by itself, as where the process crashes, still stands there.
    """
    handler = _Lines()  # of the standard error of now
    handler.setFormatter(_JsonLines())
    root, own = logging.root, [package_logger(name) for name in _OWN]
    levels = [logger.level for logger in own]
    hooks = threading.excepthook, sys.unraisablehook, warnings.showwarning
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(_NOWHERE))
        stack.enter_context(redirect_stderr(_NOWHERE))
        root.addHandler(handler)
        for logger in own:
            logger.setLevel(logging.INFO)
        threading.excepthook, sys.unraisablehook, warnings.showwarning = _ended, _ignored, _warned
        try:
            yield
        finally:
            threading.excepthook, sys.unraisablehook, warnings.showwarning = hooks
            for logger, level in zip(own, levels, strict=True):
                logger.setLevel(level)
            root.removeHandler(handler)


def _ended(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is not None:
        log_failure(ended.exc_value, f"thread {ended.thread.name if ended.thread else ''}".strip())


def _ignored(ignored: sys.UnraisableHookArgs) -> None:
    if ignored.exc_value is not None:
        log_failure(ignored.exc_value, "an error that nothing could raise")


def _warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    log_entry("warning", logging.WARNING, category=category.__name__, place=f"{filename}:{lineno}")
