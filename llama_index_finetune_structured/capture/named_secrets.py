"""Secrets that only the name before them gives away: ``password: tiger7``, ``--token x``, ``<secret>x</secret>``."""

from __future__ import annotations

import itertools
import re

__all__ = ["NAMED", "NAME_BEFORE", "NAME_HINTS", "is_named_secret", "redact_named", "secret_name"]

NAME_HINTS = (
    "key", "token", "secret", "pass", "pw", "credential", "authorization", "connection", "_pat", "kennwort", "contrase",
    "senha", "wachtwoord", "пароль", "hasło", "密码", "密碼", "パスワード",
)  # fmt: skip
"""Lower-case substrings, one of which each name contains."""

# Names whose value is always a secret. Those that are words of other fields too (a token of a sentence) are ``_WEAK``.
_STRONG = (
    r"(?:pass(?:word|wd|phrase|code|wort)|kennwort|contrase[ñn]a|mot de passe|(?<![a-z])senha|wachtwoord|пароль|hasło"
    r"|密码|密碼|パスワード|(?<![a-z\d/+])pwd?|api[ _-]?key|access[_-]?key|account[_-]?key|private[_-]?key"
    r"|secret[_-]?(?:access[_-]?)?key|(?:signing|encryption|master|subscription|app|application|shared[_-]?access)[_-]?key"
    r"|(?:access|auth|refresh|bearer|bot|session|csrf|id|api|sas|security|secret|personal)[_-]?token|client[_-]?secret"
    r"|(?:app|api|consumer|signing|webhook|shared)[_-]?secret|connection[_-]?string|_pat(?![a-z]))s?"
)
_WEAK = r"(?:token|secret|authorization|pass|credentials?)"
_QUOTED = r"""(?P<quote>\\?["'`])(?P<quoted>(?:(?!(?P=quote))[^\r\n]){4,512})(?P=quote)"""
_BARE = r"""(?P<bare>[^\s"'`\\,;{}\[\]()<>&]{6,})(?![^\s"'`\\,;{}\])<>&])"""
# Before the value: ":", "=", ":=", "=>", an attribute "value", a tag's end. Loosely, where the value has to look
# random: "is" of a sentence, a table's bar, spaces, a line's end.
_BETWEEN = (
    r"""(?P<between>\\?["'`]?\]?[ \t]*(?::=|=>|[:=])[ \t]*(?:[bru](?=["']))?|["']?\s+value["']?[ ]?[:=][ ]?|>"""
    r"""|(?P<loose>[ ](?:is|was)[ ]|[ ]?\|[ ]?|[ ]{1,4}|[ \t]*\r?\n[ \t]*))"""
)

NAMED = re.compile(
    rf"(?i)(?P<option>(?<![^\s'\"])--?[\w.-]{{0,40}}?)?(?P<name>{_STRONG}|(?<![a-z])(?P<weak>{_WEAK}))"
    rf"{_BETWEEN}(?:{_QUOTED}|{_BARE})"
)
"""A name, what stands between, and a value."""

NAME_BEFORE = re.compile(
    r"(?:passw(?:or)?(?:d|t)|passe?|phrase|code|pwd?|key|token|secret|credential|authorization|string|_pat|kennwort"
    r"|contrase[ñn]a|senha|wachtwoord|пароль|hasło|密码|密碼|パスワード)s?"
    r"""(?:\\?["'`]?\]?[ \t]*[:=>|]|["']?\s+value| is | was |\s+\S*\d)|(?<![^\s'"])--?\w"""
)
"""Matches lower-case text that has a name with a value behind it; much faster than ``NAMED``."""

_NAME = re.compile(rf"(?i)(?P<strong>{_STRONG})$|(?:^|[^a-z])(?P<weak>{_WEAK})$")

# Values of documentation and forms.
_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        string str none null true false required optional hidden secret password passwd token integer number text
        varchar boolean object array missing invalid incorrect wrong expired changed reset unknown default empty unset
        undefined example placeholder redacted changeme forgotten protected encrypted disabled enabled confirmed
        authentication authorization credentials header bearer basic please cannot should
        include omit
        """,
    )
)
_CODE = re.compile(
    r"(?:[.~]{0,2}/)?(?:[a-z_.-]+\d?/)+[a-z_.-]+\d?$|(?:\$|%|\{|<|\*{3}|\.{3}|(?:self|os|sys|settings|config|cfg|args|env|environ|process|options|request|req|ctx"
    r"|props|this|data|params|input|form|user|row|secrets?|vault|var|local|module|getenv|get_\w+)\."
    r"|[A-Za-z_]+(?:\.[A-Za-z_]+)+$)"
)
_MIXED = re.compile(r"\d[^\W\d_]|[^\W\d_]\d")
_MARK = re.compile(r"\[[A-Z_]+\]$")


def redact_named(match: re.Match[str]) -> str:
    """The match with ``[SECRET]`` for its value, or as it is where the value is code, a word or a number."""
    group = "bare" if match["quoted"] is None else "quoted"
    if not _is_secret(match[group], match):
        return match[0]
    start, end = (place - match.start() for place in match.span(group))
    return f"{match[0][:start]}[SECRET]{match[0][end:]}"


def _is_secret(value: str, match: re.Match[str]) -> bool:
    if match["weak"] is not None:
        is_behind_name = match["loose"] is None or match["option"] is not None
        return is_behind_name and _looks_random(value, 6 if match["weak"].lower() == "pass" else 12)
    if _is_word(value):
        return False
    if match["quoted"] is not None:
        return True
    if match["loose"] is not None and match["option"] is None:
        return _looks_random(value, 8)
    plain = value.rstrip(".:!?")
    if plain.replace("_", "").isalpha() and "=" in match["between"]:
        # ``api_key=api_key`` of a program; ``DB_PASSWORD=correcthorse`` of an environment
        before = match.string[max(0, match.start() - 40) : match.start()]
        return (
            match["name"].isupper()
            or match["option"] is not None
            or _is_mixed(plain.replace("_", ""))
            or bool(_IN_QUERY.search(before))
        )
    return True


_IN_QUERY = re.compile(r"[?&][\w.-]*$")


def _is_mixed(text: str) -> bool:
    """Whether capitals and small letters alternate as in no identifier."""
    return sum(a.isupper() != b.isupper() for a, b in itertools.pairwise(text)) >= max(4, len(text) // 3)


def _is_word(value: str) -> bool:
    """Whether the value is a placeholder, an expression of a program, or a word of a description."""
    plain = value.strip(" .:!?").lower()
    return plain in _WORDS or bool(_CODE.match(value) or _MARK.match(value)) or value.startswith("[SECRET")


def _looks_random(value: str, shortest: int = 12) -> bool:
    """Whether the value has ``shortest`` characters, no space, and letters and digits in one of its parts.

    ``COVID-19-related``, ``EU/1/20/1528/001`` and ``tests/test_login.py::test_1`` are no secrets.
    """
    return (
        len(value) >= shortest
        and not any(char.isspace() or char in "[]" for char in value)
        and _MIXED.search(value) is not None
        and not _CODE.match(value)
        and re.fullmatch(r"[\d:.TZ+-]+", value) is None
    )


def secret_name(key: str) -> str | None:
    """``strong`` or ``weak`` for the key of an object that names a secret, else None."""
    found = _NAME.search(key)
    return None if found is None else ("strong" if found["strong"] else "weak")


def is_named_secret(strength: str, value: str) -> bool:
    """Whether ``value`` is a secret under a key of this strength."""
    if strength == "weak":
        return _looks_random(value)
    return len(value) >= 4 and not _is_word(value)
