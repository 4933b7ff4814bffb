"""Log of raw answers, one JSONL file per system, so that an interrupted comparison can be resumed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import TracebackType

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from ...errors import CaptureError, ConfigurationError
from ...example import Source, content_hash
from ...jsonl_store import JsonlStore, read_shards
from .kept_trust import KeptTrust

__all__ = ["AnswerLog", "RawAnswer"]

_NAME_CHARACTERS = 60  # chosen: of a system's name in its file's name, far below the limit of 255 bytes


class RawAnswer(BaseModel):
    """One answer as a system gave it, before it is validated.

    ``key``: hash of system, example and schema. ``value``: the parsed object where the system returned one;
    else ``text`` is parsed. ``is_object``: it is of an object of the target's class, as that writes it, and is not
    read again: a validator need not give the same value twice. ``raw_text``: the LLM's last text, from its
    instrumentation events. ``failed``: the call itself failed (network, timeout), so a later run repeats it.
    ``elapsed_s``: seconds from the start of the ``run`` that made the call to this answer; ``seconds``: latency of
    this call. ``trust``: how sure the answer is, where the system says it.
    ``reasoning_tokens``: of the LLM's answers in the call.
    """

    model_config = ConfigDict(frozen=True)

    key: str  # first, since JsonlStore recognises its files by how their lines begin
    example_id: str
    text: str = ""
    raw_text: str | None = None
    value: JsonValue = None
    is_object: bool = False
    error: str | None = None
    error_kind: str | None = None
    failed: bool = False
    sources: tuple[Source, ...] | None = None
    bound_hits: tuple[str, ...] = ()
    retries: int = 0
    seconds: float = 0.0
    elapsed_s: float = 0.0
    run: str = ""
    trust: KeptTrust | None = None
    reasoning_tokens: int | None = None


class AnswerLog:
    """The answers of one system by key, appended to a file in ``folder`` (None: kept in memory only).

    Raises ConfigurationError where the folder cannot be written, before any call is made.
    """

    def __init__(self, folder: str | Path | None, system: str) -> None:
        self.answers: dict[str, RawAnswer] = {}
        self._store: JsonlStore | None = None
        if folder is None:
            return
        path = Path(folder) / f"{_file_name(system)}.jsonl"
        self._store = JsonlStore(path)
        try:
            self._store.open()  # repairs a torn last line
            self._read(path)
        except (OSError, CaptureError) as error:
            self._store.close()
            raise ConfigurationError(f"cache_dir {folder}: cannot be written: {error}") from error

    def add(self, answer: RawAnswer) -> None:
        """Append one answer; it is on disk when this returns.

        Raises ConfigurationError where it cannot be written (a full disk); the answers before it are kept.
        """
        if self._store is not None:
            line = json.dumps(answer.model_dump(exclude_defaults=True), ensure_ascii=False)
            try:
                self._store.append(line.encode("utf-8", "replace"))  # a text may hold half a surrogate pair
            except (OSError, CaptureError) as error:
                raise ConfigurationError(
                    f"cache_dir {self._store.path.parent}: an answer cannot be written: {error}; free disk space and "
                    "compare again, which asks only for the missing answers"
                ) from error
        self.answers[answer.key] = answer

    def __enter__(self) -> AnswerLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._store is not None:
            self._store.close()

    def _read(self, path: Path) -> None:
        """Load all files of this system; the last line of a key wins, but a failed call replaces no answer.

        Damaged lines are skipped and their calls repeated: earlier versions ended a torn line and appended to it.
        """
        for line in read_shards(path):
            try:
                answer = RawAnswer.model_validate_json(line.raw)
            except ValidationError:
                continue
            known = self.answers.get(answer.key)
            # shards are read after the main file, so a failure in one may be older than the answer
            if known is None or known.failed or not answer.failed:
                self.answers[answer.key] = answer


def _file_name(system: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", system).strip("-.")[:_NAME_CHARACTERS]
    return f"{readable or 'system'}-{content_hash(system)[:8]}"
