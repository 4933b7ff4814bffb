"""The text of a call's error without secrets: it is stored, printed and put on the page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pydantic import SecretStr

from .known_secrets import mask_secrets
from .redaction import redact_secrets

__all__ = ["error_text"]

_SHORTEST_KEY = 8  # chosen: a shorter value could be any word of a message
_PARTS = ("llm", "_llm", "_embed_model", "_response_synthesizer", "_retriever", "_query_engine")
_DEEPEST = 3  # a query engine's synthesizer, its structured LLM, the LLM in that
_QUERY_SECRET = re.compile(r"(?i)([?&][\w.-]*(?:key|token|secret|sig|signature|password|auth)=)[^&\s'\"<>]+")
_USER_INFO = re.compile(r"(?<=://)[^\s/@'\"]+(?=@)")


def error_text(error: BaseException, system: Any = None) -> str:
    """The error's message in one line, without the secrets in use, those of ``system`` and what looks like one."""
    # The exact values come first: a pattern may match a part of one and leave the rest.
    text = mask_secrets(" ".join(_message(error).split()), *_secrets_of(system))
    text = _USER_INFO.sub("[CREDENTIALS]", text)
    return redact_secrets(_QUERY_SECRET.sub(r"\1[SECRET]", text))


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # an error's own __str__ may be broken
        return ""


def _secrets_of(system: Any) -> set[str]:
    """The keys of an LLM, or of the models of a query engine or program, of any class."""
    values: list[Any] = []
    for owner in _parts_of(system, _DEEPEST):
        values += [_attribute(owner, name) for name in ("api_key", "_key", "_token")]
    plain = (value.get_secret_value() if isinstance(value, SecretStr) else value for value in values)
    return {value for value in plain if isinstance(value, str) and len(value) >= _SHORTEST_KEY}


def _parts_of(system: Any, depth: int) -> Iterator[Any]:
    """The system and the models inside it: of a query engine, its retriever, an evaluator, a structured LLM."""
    yield system
    for name in _PARTS if depth else ():
        part = _attribute(system, name)
        if part is not None:
            yield from _parts_of(part, depth - 1)


def _attribute(owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name, None)
    except Exception:  # a property of a user's class may raise anything
        return None
