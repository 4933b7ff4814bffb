"""Keys on their way to a client: wrapped at once, so that no frame of a traceback holds them in the open."""

from __future__ import annotations

from pydantic import SecretStr

__all__ = ["Key", "wrapped"]

Key = str | SecretStr | None


def wrapped(key: Key) -> SecretStr:
    """The key out of sight; empty where there is none."""
    return key if isinstance(key, SecretStr) else SecretStr(key or "")
