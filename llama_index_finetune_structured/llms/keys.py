"""API keys as SecretStr, wrapped as early as possible so that no traceback's local variables hold a plain one."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from pydantic import SecretStr

from ..capture.known_secrets import remember_secret
from ..errors import ConfigurationError

__all__ = ["ApiKey", "check_address", "checked_key", "request_key", "secret_key"]

ApiKey = str | SecretStr | None


def secret_key(key: ApiKey) -> SecretStr:
    """The key as SecretStr; an empty one for None. Raises ConfigurationError as ``checked_key``."""
    secret = key if isinstance(key, SecretStr) else SecretStr(key or "")
    checked_key(secret.get_secret_value())
    return secret


def checked_key(key: str) -> str:
    """The key, remembered as a secret in use. Raises ConfigurationError where no HTTP header can hold it.

    The HTTP client's own error quotes such a key, escaped, so that no mask of the key itself would find it.
    """
    if not (key.isascii() and key.isprintable() and key == key.strip()):
        raise ConfigurationError(
            "the API key or token has a line break, a space at an end or a character outside ASCII; give the key alone "
            "(a key read from a file: .strip())"
        )
    remember_secret(key)
    return key


def check_address(address: str, name: str, key_name: str) -> None:
    """Raise ConfigurationError for what is no server's address, or holds credentials, which errors would show.

    ``name``, ``key_name``: the parameters of the address and of the key.
    """
    try:
        parts = urlsplit(address)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, or brackets that are not closed
        parts, is_address = urlsplit(""), False
    if "@" in parts.netloc or parts.query:
        raise ConfigurationError(f"{name} holds credentials or a query; give the key as {key_name} instead")
    if not is_address or not address.isprintable() or " " in address:
        raise ConfigurationError(f"{name} {address!r}: expected an address such as http://127.0.0.1:8000/v1")


def request_key(key: SecretStr, api_base: str | None) -> str | None:
    """The key of a request: ``key``, else $OPENAI_API_KEY, else for another server than OpenAI's a placeholder.

    OpenAI's client refuses to start without a key, which servers of one's own do not ask for.
    """
    known = key.get_secret_value() or checked_key(os.environ.get("OPENAI_API_KEY", ""))
    host = urlsplit(api_base or "").hostname or "api.openai.com"
    is_openai = host == "openai.com" or host.endswith(".openai.com")
    return known or (None if is_openai else "none")
