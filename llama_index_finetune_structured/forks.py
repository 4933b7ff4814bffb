"""What must be made anew in a forked child: locks that another thread held, files that are the parent's."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

__all__ = ["tell_after_fork"]


class Forked(Protocol):
    """Wants to know when it finds itself in a child."""

    def forked(self) -> None:
        """Called in the child, before anything else runs there."""


_told: weakref.WeakSet[Forked] = weakref.WeakSet()


def tell_after_fork(item: Forked) -> None:
    """Call ``item.forked()`` in every child that is forked while it lives."""
    _told.add(item)


def _tell_all() -> None:
    for item in list(_told):
        item.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_tell_all)
