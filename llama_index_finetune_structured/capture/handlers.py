"""The handlers with the reference's face; what they record comes from the instrumentation (``tracker``)."""

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

from ..errors import ConfigurationError
from ..example import Example
from ..files import replacing
from ..formats.gradient import to_gradient
from ..formats.openai import to_openai
from ..formats.reading import read_examples
from ..formats.wire import message_from_wire
from ..jsonl_store import shards_of
from .recorder import Recorder
from .redaction import Redactor, redact_secrets
from .scopes import AttachedScope, FineTuningHandlerBase
from .tracker import tracker

__all__ = ["GradientAIFineTuningHandler", "OpenAIFineTuningHandler"]


class _FineTuningHandler(FineTuningHandlerBase):
    """Records the calls of what it is attached to; without ``path`` into a private temporary file.

    Attach it through a CallbackManager on an LLM, an index or ``Settings``, before or after building an
    engine, or with :meth:`attach`: the only way that holds for an LLM that is handed to a query engine,
    since LlamaIndex replaces such an LLM's manager.
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
        self._spool = None if path is not None else tempfile.mkdtemp(prefix="finetune-events-")
        if self._spool is not None:
            weakref.finalize(self, _remove_spool, self._spool, os.getpid())
        self._scope = AttachedScope(self)
        self._recorder = Recorder(
            path if path is not None else Path(self._spool or "") / "events.jsonl",
            self._scope,
            output_cls=output_cls,
            redact=redact_secrets if redact is True else redact or None,
            fsync=fsync,
        )
        self._recorder.store.open()
        tracker.add(self._recorder)

    @property
    def path(self) -> Path:
        """Where the Examples are."""
        return self._recorder.path

    def attach(self, component: Any) -> None:
        """Record this LLM (or index, query engine, program, agent) wherever it is used from now on."""
        self._scope.attached.add(component)

    def summary(self) -> dict[str, Any]:
        """Counts of this process: captured, rejected by reason, dropped_by_redaction, internal_errors."""
        return self._recorder.summary()

    def get_finetuning_events(self) -> dict[str, dict[str, Any]]:
        """Event id -> ``{"messages": [ChatMessage, ...], "response": ChatMessage}``, all read into memory."""
        return {
            str(example.metadata.get("event_id", example.id)): {
                "messages": [message_from_wire(message.wire()) for message in example.messages],
                "response": message_from_wire(example.answer.wire()),
            }
            for example in self._examples()
        }

    def save_finetuning_events(self, path: str | os.PathLike[str]) -> None:
        """Write the events as a training file, whole or not at all, and print how many.

        Raises ConfigurationError where this would replace the capture itself.
        """
        target = Path(path)
        if target.exists() and any(file.exists() and target.samefile(file) for file in shards_of(self.path)):
            raise ConfigurationError(f"{path}: this is the capture that is being saved; pass another path")
        count = 0
        with replacing(Path(path)) as file:
            for example in self._examples():
                file.write(json.dumps(self._line(example), ensure_ascii=False) + "\n")
                count += 1
        print(f"Wrote {count} examples to {path}")

    def _examples(self) -> Iterator[Example]:
        return read_examples(self.path)

    @abstractmethod
    def _line(self, example: Example) -> dict[str, Any]:
        """The example as one line of the training file."""

    def __deepcopy__(self, _: dict[int, Any]) -> _FineTuningHandler:
        """A copied LLM reports to the same handler."""
        return self

    def on_event_start(self, *_: Any, event_id: str = "", **__: Any) -> str:
        """Nothing: events come through the instrumentation."""
        return event_id

    def on_event_end(self, *_: Any, **__: Any) -> None:
        """Nothing: events come through the instrumentation."""

    def start_trace(self, *_: Any, **__: Any) -> None:
        """Nothing: traces come through the instrumentation."""

    def end_trace(self, *_: Any, **__: Any) -> None:
        """Nothing: traces come through the instrumentation."""


class OpenAIFineTuningHandler(_FineTuningHandler):
    """Saves events as OpenAI chat lines: ``messages``, with ``tools`` where tools were sent."""

    def _line(self, example: Example) -> dict[str, Any]:
        return to_openai(example)


class GradientAIFineTuningHandler(_FineTuningHandler):
    """Saves events as Gradient lines: ``inputs`` is the prompt as it will be served, then the answer."""

    def _line(self, example: Example) -> dict[str, Any]:
        return to_gradient(example)


def _remove_spool(folder: str, pid: int) -> None:
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)
