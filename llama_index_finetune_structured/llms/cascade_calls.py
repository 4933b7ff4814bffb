"""The calls that a cascade makes of its two models: whose they are, their tokens, and the hand-overs as Examples."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

from ..capture.calls import token_usage
from ..capture.recorder import Recorder
from ..capture.redaction import Redactor, redact_secrets
from ..capture.spans import Call, Scope, Span
from ..capture.tracker import tracker
from ..forks import reset_after_fork

__all__ = ["CascadeCalls", "Role"]

Role = Literal["student", "teacher", "text"]
"""Whom a cascade asks: the student, the teacher for an answer that was handed over, or the teacher for a text."""
_asked: ContextVar[tuple[CascadeCalls, Role] | None] = ContextVar("finetune_structured_cascade", default=None)


class _RoleScope:
    """The spans below the calls of one cascade in some roles."""

    def __init__(self, calls: CascadeCalls, *roles: Role) -> None:
        self._calls, self._roles = calls, roles

    def covers(self, span: Span) -> bool:
        """Whether the running code is such a call."""
        asked = _asked.get()
        return asked is not None and asked[0] is self._calls and asked[1] in self._roles


class _TokenMeter:
    """The tokens of the LLM calls in a scope, as the models report them."""

    def __init__(self, scope: Scope) -> None:
        self.scope: Scope = scope
        self.listening = True
        self._lock = threading.Lock()
        self._tokens: Counter[str] = Counter()
        reset_after_fork(self)

    def after_fork(self) -> None:
        """Recreate the lock, and count anew."""
        self._lock = threading.Lock()
        self._tokens.clear()

    def record(self, call: Call, response: Any) -> None:
        """Add the tokens of a completed call."""
        with self._lock:
            self._tokens.update(token_usage(response) or {})

    def count_fault(self, error: Exception) -> None:
        """Nothing: a call whose tokens are not known counts as none."""

    def count_outside(self) -> None:
        """Nothing: other calls are no concern of a cascade."""

    def tokens(self) -> dict[str, int]:
        """``prompt_tokens`` and ``completion_tokens`` so far."""
        with self._lock:
            return {name: self._tokens[name] for name in ("prompt_tokens", "completion_tokens")}


class CascadeCalls:
    """Follows the calls of one cascade by LlamaIndex's instrumentation, as ``capture`` follows those of a block.

    ``path``: where the teacher's answers are written as Examples; None: nowhere. A copy, a pickled one too, follows the
    calls of its own cascade and writes to the same path. Raises CaptureError where the path cannot be written.
    """

    def __init__(
        self, path: Path | None = None, redact: bool | Redactor = False, fsync: bool = False
    ) -> None:
        self._made_of = (path, redact, fsync)
        self._meters = {role: _TokenMeter(_RoleScope(self, role)) for role in ("student", "teacher", "text")}
        for meter in self._meters.values():
            tracker.add(meter)
        self._recorder: Recorder | None = None
        if path is not None:
            redactor = redact_secrets if redact is True else redact or None
            self._recorder = Recorder(path, _RoleScope(self, "teacher"), redact=redactor, fsync=fsync)
            self._recorder.store.open()
            tracker.add(self._recorder)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._made_of

    @contextmanager
    def asking(self, role: Role) -> Iterator[None]:
        """Within the block, LLM calls are those of a role."""
        token = _asked.set((self, role))
        try:
            yield
        finally:
            _asked.reset(token)

    def tokens(self, role: Role) -> dict[str, int]:
        """The tokens of a role's calls in this process."""
        return self._meters[role].tokens()

    def captured(self) -> dict[str, Any] | None:
        """The counts of the capture in this process; None where there is none."""
        if self._recorder is None:
            return None
        counts = self._recorder.summary()
        del counts["outside"]
        return counts
