"""Answers as they come in, one JSONL file per system, so that a killed comparison goes on where it was."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import TracebackType

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from ...errors import ConfigurationError
from ...example import Source, content_hash

__all__ = ["Answer", "Journal"]


class Answer(BaseModel):
    """One raw answer. ``value``: the parsed object where the system gave one, else ``text`` is read.
    ``raw_text`` is what the LLM behind it wrote last, as its events told.

    ``failed``: the call itself failed (network, time), so a later run asks again. ``elapsed_s`` counts
    from the start of the ``run`` that asked, ``seconds`` is this call's own latency.
    """

    model_config = ConfigDict(frozen=True)

    key: str
    example_id: str
    text: str = ""
    raw_text: str | None = None
    value: JsonValue = None
    error: str | None = None
    error_kind: str | None = None
    failed: bool = False
    sources: tuple[Source, ...] | None = None
    bound_hits: tuple[str, ...] = ()
    retries: int = 0
    seconds: float = 0.0
    elapsed_s: float = 0.0
    run: str = ""


class Journal:
    """Append-only file of one system's answers; ``folder`` None keeps them in memory only."""

    def __init__(self, folder: Path | None, system: str) -> None:
        self.answers: dict[str, Answer] = {}
        self._file: int | None = None
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{_file_name(system)}.jsonl"
            self._read(path)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            self._end_torn_line(path)
        except OSError as error:
            raise ConfigurationError(f"cache_dir {folder}: cannot be written: {error}") from error

    def add(self, answer: Answer) -> None:
        """Keep one answer; on disk it is there when this returns."""
        self.answers[answer.key] = answer
        if self._file is not None:
            line = json.dumps(answer.model_dump(exclude_defaults=True), ensure_ascii=False)
            os.write(self._file, line.encode("utf-8", "replace") + b"\n")  # it may hold half a surrogate pair

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _read(self, path: Path) -> None:
        """Later lines win; a line that a kill cut short is no answer."""
        if not path.exists():
            return
        for line in path.read_bytes().splitlines():
            try:
                answer = Answer.model_validate_json(line)
            except ValidationError:
                continue
            self.answers[answer.key] = answer

    def _end_torn_line(self, path: Path) -> None:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        if torn and self._file is not None:
            os.write(self._file, b"\n")


def _file_name(system: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", system).strip("-.")[:60]
    return f"{readable or 'system'}-{content_hash(system)[:8]}"
