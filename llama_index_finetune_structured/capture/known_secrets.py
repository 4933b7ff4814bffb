"""The secrets in use, and their removal from whatever text leaves the process: errors, logs, journals, dumps.

A server may echo the key of a request in its error. Patterns find keys of known forms; here the values themselves are
kept, in memory alone, and replaced in each form that a request or an error gives them.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import quote, quote_plus

from pydantic import SecretStr

from ..example import MOST_LEVELS

__all__ = [
    "environment_secrets",
    "is_secret_setting",
    "mask_error",
    "mask_remembered",
    "mask_secrets",
    "mask_values",
    "remember_secret",
    "remember_secrets_in",
    "without_secret_settings",
]

MARK = "[KEY]"

_SHORTEST_GIVEN = 6  # characters; chosen: a shorter key, such as "none", may be any word of a message
_SHORTEST_IN_ENVIRONMENT = 8  # chosen: the name alone tells that it is a secret
_MOST = 1_000  # chosen: values remembered, for processes whose tokens change by the hour
_VARIABLE = re.compile(r"(?i)(?:key|token|secret|password|passwd|passphrase|credentials?)s?(?:_?\d+)?$")
_SETTING = re.compile(
    r"(?i)^key$|(?:api|access|secret|private|account|auth|subscription|master|signing|encryption|functions|x)[-_]?key$"
    r"|token|secret|passw(?:or)?d|passphrase|authorization|^auth$|cookie|credential|signature|^sig$"
)
_OF_TEXT = re.compile(  # settings of a model's tokens: max_tokens, eos_token, tokenizer
    r"(?i)tokens$|tokeniz|max.*token|token.*(?:count|limit|id|budget|length|type)"
    r"|(?:bos|eos|pad|stop|unk|sep|cls|mask|end|start|special)[-_]?token$"
)

_REQUESTS = ("request", "_request", "response")  # attributes of the HTTP clients' errors

_WORD = re.compile(
    r"[a-z-]{,12}|[A-Z-]{,12}"
)  # "ollama", "not-needed": what stands for a key, or is a poor one

_ARGUMENTS: Any = BaseException.args  # as some classes forbid to set attributes

_given: dict[str, int] = {}  # with the number of their last use
_uses = itertools.count()


def remember_secret(value: str | SecretStr | None) -> None:
    """Have ``value`` replaced in every text that leaves the process from now on."""
    plain = value.get_secret_value() if isinstance(value, SecretStr) else value
    if not isinstance(plain, str) or len(plain) < _SHORTEST_GIVEN:
        return
    _given[plain] = next(_uses)  # at no time absent, as other threads may be masking
    while len(_given) > _MOST:
        _given.pop(min(list(_given.items()), key=lambda item: item[1])[0], None)


def is_secret_setting(name: object) -> bool:
    """Whether a header or setting of this name holds a secret, such as ``Authorization`` or ``api_key``."""
    return isinstance(name, str) and bool(_SETTING.search(name)) and not _OF_TEXT.search(name)


def remember_secrets_in(settings: Any, *, secret: bool = False) -> None:
    """Remember the texts under secret names, at any depth. With ``secret`` every text in ``settings`` is one."""
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            remember_secrets_in(value, secret=secret or is_secret_setting(name))
    elif isinstance(settings, list | tuple):
        for value in settings:
            remember_secrets_in(value, secret=secret)
    elif secret and isinstance(settings, SecretStr):
        remember_secret(settings)
    elif secret and isinstance(settings, str):
        remember_secret(settings)
        remember_secret(settings.rpartition(" ")[2])  # of "Bearer abc"


def without_secret_settings(settings: Any) -> Any:
    """A copy of nested settings without the entries of secret names."""
    if isinstance(settings, Mapping):
        return {
            name: without_secret_settings(value)
            for name, value in settings.items()
            if not is_secret_setting(name)
        }
    if isinstance(settings, list | tuple):
        return type(settings)(without_secret_settings(value) for value in settings)
    return settings


def environment_secrets() -> set[str]:
    """The values of the environment variables that are named as secrets."""
    return {
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST_IN_ENVIRONMENT and _VARIABLE.search(name)
    }


def mask_secrets(text: str, *more: str) -> str:
    """The text with ``[KEY]`` for each remembered value, the environment's and ``more``, in whatever encoding."""
    return _masked(text, {*_given, *environment_secrets(), *more})


def mask_remembered(text: str) -> str:
    """``mask_secrets`` without the environment, which takes a while to read, and without words, which rows may have."""
    return _masked(text, [value for value in list(_given) if not _forms_of(value).is_word])


class _Forms(NamedTuple):
    plain: frozenset[str]
    folded: frozenset[str]
    encoded: frozenset[str]
    is_word: bool

    def are_in(self, text: str, folded: str) -> bool:
        """Whether one is; much faster than a pattern of all forms of all values."""
        return any(form in folded for form in self.folded) or any(form in text for form in self.encoded)


def _masked(text: str, values: Iterable[str]) -> str:
    folded = text.casefold()
    present = frozenset(value for value in values if value and _forms_of(value).are_in(text, folded))
    return _pattern(present).sub(MARK, text) if present else text


@lru_cache(maxsize=4 * _MOST)
def _forms_of(value: str) -> _Forms:
    plain = frozenset(_forms(value))
    folded = frozenset(form.casefold() for form in plain)
    return _Forms(plain, folded, frozenset(_base64_forms(value)), bool(_WORD.fullmatch(value)))


@lru_cache(maxsize=8)
def _pattern(values: frozenset[str]) -> re.Pattern[str]:
    """Matches every form of every value; the longest first, as one may contain another."""
    words = {value for value in values if _forms_of(value).is_word}
    plain = {form for value in values - words for form in _forms_of(value).plain}
    encoded = {form for value in values for form in _forms_of(value).encoded}
    alternatives = []
    if plain:
        alternatives.append(
            rf"(?i:{_any_of(plain)})\w*"
        )  # what goes on is a longer secret, not the next word
    if words:
        alternatives.append(rf"(?<![\w-])(?:{_any_of(words)})(?![\w-])")
    if (
        encoded
    ):  # from where its run of characters begins, or from itself: each further start would cost a run's time
        run = "[A-Za-z0-9+/_-]"
        alternatives.append(f"(?:(?<!{run}){run}*)?(?:{_any_of(encoded)}){run}*=*")
    return re.compile("|".join(alternatives))


def _any_of(forms: set[str]) -> str:
    return "|".join(re.escape(form) for form in sorted(forms, key=lambda form: (-len(form), form)))


def _forms(value: str) -> set[str]:
    """The value as it is, percent-encoded or escaped as JSON once and twice, and as Python writes it."""
    percent = {quote(value, safe=""), quote(value), quote_plus(value)}
    escaped = {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1]}
    twice = {quote(once, safe="") for once in percent} | {json.dumps(once)[1:-1] for once in escaped}
    return {value, " ".join(value.split())} | percent | escaped | twice


def _base64_forms(value: str) -> set[str]:
    """What base64 makes of the value at each of three offsets, without the characters that its neighbours share."""
    raw = value.encode("utf-8", "replace")
    forms = set()
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + raw).decode()
        core = encoded[-(-offset * 8 // 6) : (offset + len(raw)) * 8 // 6]
        if len(core) >= _SHORTEST_IN_ENVIRONMENT:
            forms |= {core, core.replace("+", "-").replace("/", "_")}
    return forms


def mask_values(value: Any, levels: int = MOST_LEVELS) -> Any:
    """``mask_secrets`` for every text in nested dicts, lists and tuples; other objects stay as they are.

    What is deeper than ``levels`` becomes "...".
    """
    if isinstance(value, str):
        return mask_secrets(value)
    if isinstance(value, bytes):
        return mask_secrets(value.decode("latin-1")).encode("latin-1")
    if levels == 0 and isinstance(value, dict | list | tuple):
        return "..."
    if isinstance(value, dict):
        return {mask_values(key): mask_values(item, levels - 1) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(mask_values(item, levels - 1) for item in value)
    return value


def mask_error(error: BaseException) -> None:
    """Mask the messages and attributes of an error, in place, and of all errors that it is chained to."""
    pending, seen = [error], set()
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        _ARGUMENTS.__set__(current, mask_values(_ARGUMENTS.__get__(current)))
        for name, value in list(vars(current).items()):
            if isinstance(value, str | bytes | dict | list | tuple):
                vars(current)[name] = mask_values(value)
            elif name in _REQUESTS and mask_secrets(shown := repr(value)) != shown:
                vars(current)[name] = None  # an address that a redirect gave
        pending += [item for item in (current.__cause__, current.__context__) if item is not None]
        group = getattr(current, "exceptions", None)  # of an ExceptionGroup, which Python 3.10 has not
        pending += (
            [item for item in group if isinstance(item, BaseException)] if isinstance(group, tuple) else []
        )
