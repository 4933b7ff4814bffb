"""Check, redact, store and count the completed calls of one capture."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_json

from ..answer_classes import class_path
from ..example import Example
from ..forks import reset_after_fork
from ..formats.wire import response_to_wire
from ..jsonl_store import JsonlStore
from ..printable import package_logger
from .answer_check import Rejected, check_answer
from .calls import example_row, finish_reason, wire_texts
from .redaction import Redactor, redact_record, remember_environment
from .request import AnswerRequest, read_request, without_tool_schema
from .spans import Call, Scope

__all__ = ["Recorder", "rejects_path"]

_logger = package_logger(__name__)
_recording: ContextVar[bool] = ContextVar("finetune_structured_recording", default=False)


def rejects_path(path: str | os.PathLike[str]) -> Path:
    """The file of rejected answers beside a capture: ``songs.jsonl`` -> ``songs.rejects.jsonl``."""
    main = Path(path)
    return main.with_name(f"{main.stem}.rejects{main.suffix or '.jsonl'}")


class Recorder:
    """Write Examples to ``path`` and rejected answers, with the reason, to ``rejects_path``.

    ``scope``: which spans it owns. ``output_cls``: the class of answers whose call names none. ``redact``: applied to
    every string before it is written. ``fsync``: records survive power loss.
    """

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
        if redact is not None:
            remember_environment()
        self._lock = threading.RLock()
        self._counts: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()
        reset_after_fork(self)

    @property
    def rejects_path(self) -> Path:
        """The file of rejected answers; absent while there are none."""
        return rejects_path(self.path)

    def after_fork(self) -> None:
        """Reset the counters and recreate the lock."""
        self._lock = threading.RLock()
        self._counts.clear()
        self._rejected.clear()

    def summary(self) -> dict[str, Any]:
        """Counts of this process: captured, rejected by reason, dropped by redaction, internal errors, outside."""
        with self._lock:
            return {
                "captured": self._counts["captured"],
                "rejected": dict(self._rejected),
                "dropped_by_redaction": self._counts["dropped_by_redaction"],
                "internal_errors": self._counts["internal_errors"],
                "outside": self._counts["outside"],
            }

    def close(self) -> None:
        """Close the files; a call that completes later opens them again."""
        self.store.close()
        self._rejects.close()

    def record(self, call: Call, response: Any) -> None:
        """Store a completed call. Errors are counted, never raised."""
        if _recording.get():
            return  # a call that the redactor made: recording it would make another one
        token = _recording.set(True)
        try:
            self._record(call, response)
        except Exception as error:
            self.count_fault(error)
        finally:
            _recording.reset(token)

    def count_fault(self, error: Exception) -> None:
        """Count an error inside capture; the first is logged without its message, which may contain secrets."""
        with self._lock:
            self._counts["internal_errors"] += 1
            first = self._counts["internal_errors"] == 1
        if first:
            _logger.warning(
                "capture to %s failed (%s); later failures are only counted", self.path, _location(error)
            )

    def count_outside(self) -> None:
        """Count an LLM call that no recorder owns."""
        self._count("outside")

    def warn_of_outside(self) -> None:
        """Log how many LLM calls were not recorded, and how to record them; nothing where there were none."""
        with self._lock:
            outside, recorded = self._counts["outside"], self._counts["captured"]
        if outside:
            _logger.warning(
                "capture to %s: %d LLM calls were made outside of its block and not captured (%d were captured). They "
                "came from asyncio tasks or threads that other code started, such as a web server's: pass "
                "everywhere=True to capture, or attach(...) the LLM or query engine",
                self.path,
                outside,
                recorded,
            )

    def _record(self, call: Call, response: Any) -> None:
        """Check the answer against its request and store it, or store it as a reject."""
        answer = response_to_wire(response)
        request, output_cls = self._read_request(call)
        if output_cls is None and not request.forced and not answer.get("tool_calls"):
            request = without_tool_schema(request)
        texts = wire_texts(call.messages)
        try:
            finish = finish_reason(response) or call.finish_reason
            checked = check_answer(answer, request, output_cls, finish, texts)
        except Rejected as rejected:
            nonempty = {**answer, "content": answer["content"] or ""}  # an Example needs content or calls
            self._reject(example_row(call, nonempty, request, response), rejected)
            return
        row = example_row(call, checked, request, response)
        if output_cls is not None:
            row["answer_class"] = class_path(output_cls)
        if checked["content"] != answer["content"]:
            row["metadata"]["answer_as_sent"] = answer["content"]
        elif checked.get("tool_calls") != answer.get("tool_calls"):
            row["metadata"]["answer_as_sent"] = answer["tool_calls"]
        line = self._redacted(
            _dumped(row), lambda redacted: check_answer(redacted, request, output_cls, None, texts)
        )
        if line is not None:
            self.store.append(line)
            self._count("captured")

    def _read_request(self, call: Call) -> tuple[AnswerRequest, type[BaseModel] | None]:
        """The call's request, and the class that its answer is checked by: its own, or else the capture's."""
        request = read_request(call.messages, call.kwargs, call.output_cls)
        default = self._output_cls
        if call.output_cls is not None or default is None or not _may_answer_with(default, request):
            return request, call.output_cls
        return read_request(call.messages, call.kwargs, default), default

    def _reject(self, row: dict[str, Any], rejected: Rejected) -> None:
        head = json.dumps({"reason": rejected.reason, "detail": rejected.detail}).encode()
        line = self._redacted(head[:-1] + b', "example": ' + _dumped(row) + b"}")
        if line is not None:
            self._rejects.append(line)
            with self._lock:
                self._rejected[rejected.reason] += 1

    def _redacted(self, line: bytes, check: Callable[[dict[str, Any]], Any] | None = None) -> bytes | None:
        """The redacted line; None, and counted, where redaction fails or the answer no longer passes ``check``."""
        if self._redact is None:
            return line
        try:
            row = redact_record(json.loads(line), self._redact)
            if check is not None:
                check({"content": None, **row["answer"]})
            return json.dumps(row, ensure_ascii=False).encode()
        except Exception:
            self._count("dropped_by_redaction")
            return None

    def _count(self, outcome: str) -> None:
        with self._lock:
            self._counts[outcome] += 1


def _may_answer_with(output_cls: type[BaseModel], request: AnswerRequest) -> bool:
    """Whether a call without a class of its own may be checked against ``output_cls``: no tools, no other schema."""
    if request.schema is None:
        return request.transport != "tools"
    return request.schema_name in (output_cls.__name__, output_cls.model_config.get("title"))


def _dumped(row: dict[str, Any]) -> bytes:
    """The row as a JSON line, validated as an Example; without the id, as hashing doubles the cost of a record."""
    if not _is_plain(row):
        Example.model_validate(row)
    try:
        return to_json(row)
    except PydanticSerializationError:  # a lone surrogate, which UTF-8 cannot encode
        return json.dumps(row, ensure_ascii=False).encode("utf-8", "replace")


def _is_plain(row: dict[str, Any]) -> bool:
    """Whether the row is a valid Example by construction, so that Pydantic's check can be skipped.

    Only tools, response formats and content parts contain values that the host chose freely. Most calls have none of
    these, and the check takes a fifth of the time that capture adds to a call.
    """
    messages = (*row["messages"], row["answer"])
    for message in messages:
        if len(message) != 2 or type(message["content"]) is not str:
            return False
    return len(messages) > 1 and "tools" not in row and "response_format" not in row


def _location(error: Exception) -> str:
    """The error's type and the function and line that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    location = f" in {trace.tb_frame.f_code.co_name}:{trace.tb_lineno}" if trace is not None else ""
    return f"{type(error).__name__}{location}"
