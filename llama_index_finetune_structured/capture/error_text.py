"""The text of a call's error without secrets: it is stored, printed and put on the page."""

from __future__ import annotations

import os
import re
from typing import Any

from pydantic import SecretStr

from .redaction import redact_secrets

__all__ = ["error_text"]

_SHORTEST_KEY = 8  # chosen: a shorter value could be any word of a message
_KEY_NAME = re.compile(r"(?i)(?:key|token|secret|password)$")
_QUERY_SECRET = re.compile(r"(?i)([?&][\w.-]*(?:key|token|secret|sig|signature|password|auth)=)[^&\s'\"<>]+")
_USER_INFO = re.compile(r"(?<=://)[^\s/@'\"]+(?=@)")


def error_text(error: BaseException, system: Any = None) -> str:
    """The error's message in one line, without the keys of ``system`` and the environment and what looks like one."""
    text = _USER_INFO.sub("[CREDENTIALS]", " ".join(_message(error).split()))
    text = redact_secrets(_QUERY_SECRET.sub(r"\1[SECRET]", text))
    for secret in sorted(_known_secrets(system), key=len, reverse=True):
        text = text.replace(secret, "[KEY]")
    return text


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # an error's own __str__ may be broken
        return ""


def _known_secrets(system: Any) -> set[str]:
    values: list[Any] = [value for name, value in os.environ.items() if _KEY_NAME.search(name)]
    synthesizer = _attribute(system, "_response_synthesizer")  # of a query engine
    for owner in (
        system,
        *(_attribute(system, name) for name in ("llm", "_llm")),
        _attribute(synthesizer, "_llm"),
    ):
        values += [_attribute(owner, name) for name in ("api_key", "_key", "_token")]
    plain = (value.get_secret_value() if isinstance(value, SecretStr) else value for value in values)
    return {value for value in plain if isinstance(value, str) and len(value) >= _SHORTEST_KEY}


def _attribute(owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name, None)
    except Exception:  # a property of a user's class may raise anything
        return None
