"""The context manager ``capture``: write every valid LLM answer given inside a ``with`` block to a file."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

    from .redaction import Redactor

__all__ = ["capture"]


class capture:
    """Capture every LLM answer given inside a ``with`` block, as one Example a line.

    The block covers its own calls, those of its asyncio tasks and of the threads started while it is open. A web
    server runs its requests in tasks that it creates itself, outside the block: give ``everywhere=True`` there, or
    ``attach`` the component. Calls that were made while the block was open and that nothing captured are counted as
    ``outside`` in ``summary``, and a warning is logged when the block ends.

    Only completed calls are stored. Answers are validated against the schema that their call requested, or else
    against ``output_cls``; invalid ones go to ``rejects_path`` with the reason. Capture never breaks the host:
    an error inside it is counted in ``summary``, and the first one is logged.

    Args:
        path: JSON Lines file to write; an existing capture is continued, a missing folder is created.
        output_cls: Class of the answers of calls that carry no schema. None: their answers may be any text.
        redact: True removes keys, tokens, e-mail addresses, phone, account and card numbers before anything is
            written (``redact_secrets``); a function from text to text replaces that, whose own LLM calls are not
            captured.
        fsync: Whether records survive power loss, at about 1 ms a record.
        everywhere: Whether every call of the process is captured while the block is open, whichever thread or
            asyncio task makes it.

    Raises:
        CaptureError: On entering the block, where ``path`` or its folder cannot be written, or ``path`` is not a
            capture.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        output_cls: type[BaseModel] | None = None,
        redact: bool | Redactor = False,
        fsync: bool = False,
        everywhere: bool = False,
    ) -> None:
        # Imported here since LlamaIndex takes a second to import, and the package binds this class when imported.
        from .recorder import Recorder
        from .redaction import redact_secrets
        from .scopes import BlockScope

        self._scope = BlockScope(everywhere=everywhere)
        redactor = redact_secrets if redact is True else redact or None
        self._recorder = Recorder(path, self._scope, output_cls=output_cls, redact=redactor, fsync=fsync)

    @property
    def path(self) -> Path:
        """The file of the Examples."""
        return self._recorder.path

    @property
    def rejects_path(self) -> Path:
        """The file of rejected answers; absent while there are none."""
        return self._recorder.rejects_path

    def attach(self, component: Any) -> None:
        """Capture the calls of one component from any thread during the block.

        Args:
            component: An LLM, index, query engine, program or agent; it is referenced weakly.
        """
        self._scope.attached.add(component)

    def summary(self) -> dict[str, Any]:
        """Counts of this process so far.

        Returns:
            ``captured``, ``rejected`` (reason -> count), ``dropped_by_redaction``, ``internal_errors`` and
            ``outside``: LLM calls made while the block was open that nothing captured.
        """
        return self._recorder.summary()

    @staticmethod
    def document(document_id: str) -> AbstractContextManager[None]:
        """Name the document that the calls in a block are about.

        For calls without retrieval, such as ``structured_predict`` on a text; it also replaces the document of the
        retrieved chunks. The block covers the asyncio tasks it creates; a thread needs a block of its own, around
        the call. Works with the handlers as well: ``with capture.document("invoice-17"): llm.complete(...)``.

        Args:
            document_id: Name of the document: ``Example.document_id``, by which ``split`` keeps rows together.

        Raises:
            ConfigurationError: On entering the block, where the name is no text or empty.
        """
        from .labels import document

        return document(document_id)

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
        self._recorder.warn_of_outside()

    def __repr__(self) -> str:
        return f"capture({str(self.path)!r}, {self.summary()})"
