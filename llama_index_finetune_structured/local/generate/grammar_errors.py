"""Errors of schemas that no answer can be held to, with what callers over HTTP are told of them."""

from __future__ import annotations

from ...errors import ConfigurationError

__all__ = ["GrammarError", "NoRoomError"]


class GrammarError(ConfigurationError):
    """No grammar can be made of an answer's schema. ``told``: that, without what is said of Python's arguments."""

    def __init__(self, reason: str, advice: str = "change the schema") -> None:
        self.told = f"no grammar can be made of the answer's schema: {reason}; {advice}"
        super().__init__(f"{self.told}, or pass constrained=False, and answers are validated only")


class NoRoomError(ConfigurationError):
    """No answer to a schema fits in the limit of tokens. ``told``: as of ``GrammarError``."""

    def __init__(self, smallest: int, limit: int) -> None:
        why = f"the smallest answer that fits the schema has about {smallest} tokens and the limit is {limit}"
        advice = "shorten the prompt where it fills the context window, or require fewer fields"
        self.told = f"{why}: raise the limit, {advice}"
        super().__init__(f"{why}: raise max_new_tokens, {advice}")
