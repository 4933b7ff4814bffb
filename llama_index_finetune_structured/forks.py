"""Reset objects in a forked child process: locks another thread held, files that belong to the parent."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

from .printable import package_logger

__all__ = ["ForkAware", "ForkSafeLock", "reset_after_fork"]


class ForkAware(Protocol):
    """An object that resets itself in a forked child."""

    def after_fork(self) -> None:
        """Called in the child, before any other code runs there."""


_logger = package_logger(__name__)
_registered: weakref.WeakSet[ForkAware] = weakref.WeakSet()


def reset_after_fork(item: ForkAware) -> None:
    """Call ``item.after_fork()`` in every child that is forked while ``item`` is alive."""
    _registered.add(item)


class ForkSafeLock:
    """A lock for ``with``, which is free in a forked child whatever thread of the parent holds it."""

    def __init__(self) -> None:
        self.after_fork()
        reset_after_fork(self)

    def after_fork(self) -> None:
        """Make a new lock."""
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _reset_all() -> None:
    for item in list(_registered):
        try:
            item.after_fork()
        except Exception:  # the other objects must be reset all the same
            _logger.exception("%s could not be reset after a fork", type(item).__name__)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_all)
