"""A recorder takes ended calls in its scope, checks, redacts, stores and counts them."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_json

from ..example import Example
from ..forks import tell_after_fork
from ..formats.wire import response_to_wire
from ..jsonl_store import JsonlStore
from .answer_check import Rejected, check_answer
from .calls import Call, finish_reason, to_row
from .redaction import Redactor, redact_row
from .request import Asked, read_asked, without_tool_schema
from .spans import Span

__all__ = ["Recorder", "Scope", "rejects_path"]

_logger = logging.getLogger(__name__)


class Scope(Protocol):
    """Which spans, with everything below them, are a recorder's."""

    def covers(self, span: Span) -> bool:
        """Called once for every span that is entered outside the scope."""


def rejects_path(path: str | os.PathLike[str]) -> Path:
    """``songs.jsonl`` -> ``songs.rejects.jsonl``, beside it."""
    main = Path(path)
    return main.with_name(f"{main.stem}.rejects{main.suffix or '.jsonl'}")


class Recorder:
    """Writes Examples to ``path`` and what failed its check, with the reason, to :func:`rejects_path`."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        scope: Scope,
        *,
        output_cls: type[BaseModel] | None = None,
        redact: Redactor | None = None,
        fsync: bool = False,
    ) -> None:
        self.path = Path(path)
        self.scope = scope
        self.listening = True
        self.store = JsonlStore(path, fsync=fsync)
        self._rejects = JsonlStore(rejects_path(path), fsync=fsync)
        self._output_cls = output_cls
        self._redact = redact
        self._lock = threading.RLock()
        self._counts: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()
        tell_after_fork(self)

    @property
    def rejects_path(self) -> Path:
        """Where rejected answers go; the file is absent while there are none."""
        return rejects_path(self.path)

    def forked(self) -> None:
        """In a child: count from nought, with a lock that nobody holds."""
        self._lock = threading.RLock()
        self._counts.clear()
        self._rejected.clear()

    def summary(self) -> dict[str, Any]:
        """Counts of this process: captured, rejected by reason, dropped by redaction, internal errors."""
        with self._lock:
            return {
                "captured": self._counts["captured"],
                "rejected": dict(self._rejected),
                "dropped_by_redaction": self._counts["dropped_by_redaction"],
                "internal_errors": self._counts["internal_errors"],
            }

    def close(self) -> None:
        """Close the files; a call that ends later opens them again."""
        self.store.close()
        self._rejects.close()

    def record(self, call: Call, response: Any) -> None:
        """Keep an ended call. Whatever fails is counted and goes no further."""
        try:
            self._record(call, response)
        except Exception as error:
            self.count_fault(error)

    def count_fault(self, error: Exception) -> None:
        """Count a fault inside capture; the first is logged, without its message, which may hold secrets."""
        with self._lock:
            self._counts["internal_errors"] += 1
            first = self._counts["internal_errors"] == 1
        if first:
            _logger.warning(
                "capture to %s failed (%s); later failures are only counted", self.path, _where(error)
            )

    def _record(self, call: Call, response: Any) -> None:
        answer = response_to_wire(response)
        output_cls = call.output_cls
        asked = read_asked(call.messages, call.kwargs, output_cls)
        if output_cls is None and self._output_cls is not None and _may_be(self._output_cls, asked):
            output_cls = self._output_cls
            asked = read_asked(call.messages, call.kwargs, output_cls)
        if output_cls is None and not asked.forced and not answer.get("tool_calls"):
            asked = without_tool_schema(asked)
        try:
            checked = check_answer(answer, asked, output_cls, finish_reason(response) or call.stopped)
        except Rejected as rejected:
            answered = {**answer, "content": answer["content"] or ""}
            self._reject(to_row(call, answered, asked, response), rejected)
            return
        row = to_row(call, checked, asked, response)
        if checked["content"] != answer["content"]:
            row["metadata"]["answer_as_sent"] = answer["content"]
        line = self._redacted(_dumped(row), lambda redacted: check_answer(redacted, asked, output_cls, None))
        if line is not None:
            self.store.append(line)
            self._count("captured")

    def _reject(self, row: dict[str, Any], rejected: Rejected) -> None:
        about = json.dumps({"reason": rejected.reason, "detail": rejected.detail}).encode()
        line = self._redacted(about[:-1] + b', "example": ' + _dumped(row) + b"}")
        if line is not None:
            self._rejects.append(line)
            with self._lock:
                self._rejected[rejected.reason] += 1

    def _redacted(self, line: bytes, check: Callable[[dict[str, Any]], Any] | None = None) -> bytes | None:
        """The line without secrets; None, and counted, where that fails or spoils the answer."""
        if self._redact is None:
            return line
        try:
            row = redact_row(json.loads(line), self._redact)
            if check is not None:
                check({"content": None, **row["answer"]})
            return json.dumps(row, ensure_ascii=False).encode()
        except Exception:
            self._count("dropped_by_redaction")
            return None

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1


def _may_be(output_cls: type[BaseModel], asked: Asked) -> bool:
    """Does a call that names no class answer with this one? Not if it has tools or another schema."""
    if asked.schema is None:
        return asked.transport != "tools"
    return asked.schema_name in (output_cls.__name__, output_cls.model_config.get("title"))


def _dumped(row: dict[str, Any]) -> bytes:
    """The line, if it is an Example's, without its id: hashing would double the cost of a record."""
    if not _is_plain(row):
        Example.model_validate(row)
    try:
        return to_json(row)
    except PydanticSerializationError:  # half a surrogate pair, which UTF-8 cannot hold
        return json.dumps(row, ensure_ascii=False).encode("utf-8", "replace")


def _is_plain(row: dict[str, Any]) -> bool:
    """An Example by the way it was made: only tools, formats and content parts hold what the host chose freely.

    Most calls are plain, and pydantic's check takes a fifth of what capture adds to them.
    """
    messages = (*row["messages"], row["answer"])
    for message in messages:
        if len(message) != 2 or type(message["content"]) is not str:
            return False
    return len(messages) > 1 and "tools" not in row and "response_format" not in row


def _where(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" in {trace.tb_frame.f_code.co_name}:{trace.tb_lineno}" if trace is not None else ""
    return f"{type(error).__name__}{place}"
