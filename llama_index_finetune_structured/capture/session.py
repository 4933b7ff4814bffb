"""``with capture("answers.jsonl"): ...`` — every completed, valid answer inside the block, on disk."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

    from .redaction import Redactor

__all__ = ["capture"]


class capture:
    """Capture every LLM answer given inside a ``with`` block to ``path``, as one Example a line.

    In scope are the block's own calls, its asyncio tasks and the threads started while it is open;
    ``attach(llm)`` adds the calls of an LLM wherever they are made. Answers are checked against the schema
    they were asked with or else against ``output_cls``; what fails goes to :attr:`rejects_path` with the
    reason. ``redact=True`` removes keys, tokens, e-mail addresses, phone and card numbers, a function from
    text to text removes what it likes. ``fsync=True`` survives power loss. An existing capture is continued.

    Raises CaptureError where ``path`` cannot be written or is no capture.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        output_cls: type[BaseModel] | None = None,
        redact: bool | Redactor = False,
        fsync: bool = False,
    ) -> None:
        # LlamaIndex takes a second to import; the package binds this class without it.
        from .recorder import Recorder
        from .redaction import redact_secrets
        from .scopes import BlockScope

        self._scope = BlockScope()
        redactor = redact_secrets if redact is True else redact or None
        self._recorder = Recorder(path, self._scope, output_cls=output_cls, redact=redactor, fsync=fsync)

    @property
    def path(self) -> Path:
        """Where the Examples are."""
        return self._recorder.path

    @property
    def rejects_path(self) -> Path:
        """Where rejected answers are; absent while there are none."""
        return self._recorder.rejects_path

    def attach(self, component: Any) -> None:
        """Capture the calls of this LLM (index, query engine) from any thread while the block is open."""
        self._scope.attached.add(component)

    def summary(self) -> dict[str, Any]:
        """Counts of this process: captured, rejected by reason, dropped_by_redaction, internal_errors."""
        return self._recorder.summary()

    def __enter__(self) -> capture:
        from .tracker import tracker

        self._recorder.store.open()
        self._recorder.listening = True
        self._scope.enter()
        tracker.add(self._recorder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from .tracker import tracker

        self._scope.leave()
        tracker.remove(self._recorder)
        self._recorder.close()

    def __repr__(self) -> str:
        return f"capture({str(self.path)!r}, {self.summary()})"
