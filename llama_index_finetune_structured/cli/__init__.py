"""finetune-structured: the loop from the shell. A module a command; ``main`` brings them together."""

from __future__ import annotations

from .main import app, main

__all__ = ["app", "main"]
