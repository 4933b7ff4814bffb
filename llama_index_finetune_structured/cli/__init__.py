"""The ``finetune-structured`` command line, one module a command."""

from __future__ import annotations

from .main import app, main

__all__ = ["app", "main"]
