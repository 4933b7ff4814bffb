"""API keys as SecretStr, wrapped as early as possible so that no traceback's local variables hold a plain one."""

from __future__ import annotations

from pydantic import SecretStr

__all__ = ["ApiKey", "secret_key"]

ApiKey = str | SecretStr | None


def secret_key(key: ApiKey) -> SecretStr:
    """The key as SecretStr; an empty one for None."""
    return key if isinstance(key, SecretStr) else SecretStr(key or "")
