"""Drop-in llama-index-finetuning handlers; they record through LlamaIndex's instrumentation (``tracker``)."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import weakref
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama_index.core.callbacks.schema import CBEventType
from pydantic import BaseModel

from ..errors import ConfigurationError, DatasetError
from ..example import Example
from ..formats.gradient import to_gradient
from ..formats.openai import to_openai
from ..formats.reading import read_examples
from ..formats.wire import message_from_wire
from ..jsonl import save_lines
from ..jsonl_store import shards_of
from ..printable import package_logger, printable
from .recorder import Recorder
from .redaction import Redactor, redact_secrets
from .scopes import AttachedScope, FineTuningHandlerBase
from .tracker import tracker

__all__ = ["GradientAIFineTuningHandler", "OpenAIFineTuningHandler"]

_logger = package_logger(__name__)


class _FineTuningHandler(FineTuningHandlerBase):
    """Record the LLM calls of the components that the handler is attached to.

    The subclasses choose the format of the training file and document the parameters.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        output_cls: type[BaseModel] | None = None,
        redact: bool | Redactor = False,
        fsync: bool = False,
    ) -> None:
        super().__init__(list(CBEventType), list(CBEventType))
        if path is None:
            folder = tempfile.mkdtemp(prefix="finetune-events-")
            weakref.finalize(self, _remove_temporary, folder, os.getpid())
            path = Path(folder) / "events.jsonl"
        self._scope = AttachedScope(self)
        self._recorder = Recorder(
            path,
            self._scope,
            output_cls=output_cls,
            redact=redact_secrets if redact is True else redact or None,
            fsync=fsync,
        )
        self._recorder.store.open()
        tracker.add(self._recorder)

    @property
    def path(self) -> Path:
        """The file of the Examples."""
        return self._recorder.path

    def attach(self, component: Any) -> None:
        """Record one component wherever it is used from now on.

        Args:
            component: An LLM, index, query engine, program or agent; it is referenced weakly.
        """
        self._scope.attached.add(component)

    def summary(self) -> dict[str, Any]:
        """Counts of this process so far.

        Returns:
            ``captured``, ``rejected`` (reason -> count), ``dropped_by_redaction``, ``internal_errors`` and
            ``outside``: LLM calls that no handler and no ``capture`` recorded.
        """
        return self._recorder.summary()

    def get_finetuning_events(self) -> dict[str, dict[str, Any]]:
        """Read all events into memory.

        Returns:
            Event id -> ``{"messages": [ChatMessage, ...], "response": ChatMessage}``.

        Raises:
            DatasetError: The file cannot be read or has an invalid line.
        """
        return {
            str(example.metadata.get("event_id", example.id)): {
                "messages": [message_from_wire(message.wire(reasoning=True)) for message in example.messages],
                "response": message_from_wire(example.answer.wire(reasoning=True)),
            }
            for example in self._examples()
        }

    def save_finetuning_events(self, path: str | os.PathLike[str]) -> None:
        """Write the events as a training file, atomically, and print how many.

        Events that the format cannot express (for Gradient several tool calls in one answer, or an image) are left
        out, with one logged warning.

        Args:
            path: Training file to write, one JSON line an event; a file that is there is replaced.

        Raises:
            ConfigurationError: ``path`` is the capture itself, or cannot be written.
            DatasetError: The capture cannot be read or has an invalid line, or the format can express no event of it.
        """
        target = Path(path)
        if target.exists() and any(file.exists() and target.samefile(file) for file in shards_of(self.path)):
            raise ConfigurationError(f"{path}: this is the capture that is being exported; pass another path")
        count, left_out = 0, []

        def lines() -> Iterator[str]:
            nonlocal count
            for example in self._examples():
                try:
                    line = self._line(example)
                except ValueError as error:  # DatasetError too
                    left_out.append(f"{example.id[:12]}: {error}")
                    continue
                yield json.dumps(line, ensure_ascii=False)
                count += 1
            if left_out and not count:
                raise DatasetError(
                    f"{path}: none of the {len(left_out)} events can be written in this handler's format; capture "
                    f"text answers, or export with OpenAIFineTuningHandler. The first, {left_out[0]}"
                )

        save_lines(target, lines())
        if left_out:
            _logger.warning("%s: %d events were left out; the first, %s", path, len(left_out), left_out[0])
        print(printable(f"Wrote {count} examples to {path}"))

    def _examples(self) -> Iterator[Example]:
        return read_examples(self.path)

    @abstractmethod
    def _line(self, example: Example) -> dict[str, Any]:
        """The example as one line of the training file."""

    def __deepcopy__(self, _: dict[int, Any]) -> _FineTuningHandler:
        """The handler itself, so that a copied LLM reports to the same one."""
        return self

    def on_event_start(self, *_: Any, event_id: str = "", **__: Any) -> str:
        """Do nothing; events arrive through the instrumentation."""
        return event_id

    def on_event_end(self, *_: Any, **__: Any) -> None:
        """Do nothing; events arrive through the instrumentation."""

    def start_trace(self, *_: Any, **__: Any) -> None:
        """Do nothing; traces arrive through the instrumentation."""

    def end_trace(self, *_: Any, **__: Any) -> None:
        """Do nothing; traces arrive through the instrumentation."""


class OpenAIFineTuningHandler(_FineTuningHandler):
    """Record LLM calls and save them as OpenAI chat lines: ``messages``, with ``tools`` where tools were sent.

    Attach it through a CallbackManager on an LLM, an index or ``Settings``, before or after building an engine, or
    with ``attach``. Use ``attach`` for an LLM that is passed to a query engine, since LlamaIndex replaces
    the callback manager of such an LLM.

    Args:
        path: File of the Examples; an existing capture is continued. None: a private temporary file that is
            deleted with the handler.
        output_cls: Class of the answers of calls that carry no schema. None: their answers may be any text.
        redact: True removes keys, tokens, e-mail addresses, phone, account and card numbers before anything is
            written (``redact_secrets``); a function from text to text replaces that.
        fsync: Whether records survive power loss, at about 1 ms a record.

    Raises:
        CaptureError: ``path`` or its folder cannot be written, or ``path`` is not a capture.
    """

    def _line(self, example: Example) -> dict[str, Any]:
        return to_openai(example)


class GradientAIFineTuningHandler(_FineTuningHandler):
    """Record LLM calls and save them as Gradient lines: ``inputs`` is the prompt as it will be served, then the answer.

    Attach it through a CallbackManager on an LLM, an index or ``Settings``, before or after building an engine, or
    with ``attach``. Use ``attach`` for an LLM that is passed to a query engine, since LlamaIndex replaces
    the callback manager of such an LLM.

    Args:
        path: File of the Examples; an existing capture is continued. None: a private temporary file that is
            deleted with the handler.
        output_cls: Class of the answers of calls that carry no schema. None: their answers may be any text.
        redact: True removes keys, tokens, e-mail addresses, phone, account and card numbers before anything is
            written (``redact_secrets``); a function from text to text replaces that.
        fsync: Whether records survive power loss, at about 1 ms a record.

    Raises:
        CaptureError: ``path`` or its folder cannot be written, or ``path`` is not a capture.
    """

    def _line(self, example: Example) -> dict[str, Any]:
        return to_gradient(example)


def _remove_temporary(folder: str, pid: int) -> None:
    """Remove the folder, but not from a forked child: it is the parent's."""
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)
