"""API keys as SecretStr, wrapped as early as possible so that no traceback's local variables hold a plain one."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from pydantic import SecretStr

__all__ = ["ApiKey", "request_key", "secret_key"]

ApiKey = str | SecretStr | None


def secret_key(key: ApiKey) -> SecretStr:
    """The key as SecretStr; an empty one for None."""
    return key if isinstance(key, SecretStr) else SecretStr(key or "")


def request_key(key: SecretStr, api_base: str | None) -> str | None:
    """The key of a request: ``key``, else $OPENAI_API_KEY, else for another server than OpenAI's a placeholder.

    OpenAI's client refuses to start without a key, which servers of one's own do not ask for.
    """
    known = key.get_secret_value() or os.environ.get("OPENAI_API_KEY")
    host = urlsplit(api_base or "").hostname or "api.openai.com"
    is_openai = host == "openai.com" or host.endswith(".openai.com")
    return known or (None if is_openai else "none")
