"""The training file that a hosted engine uploads: path, hash, size, transport, and checks."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import io
import json
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ...example import Example, Transport
from ...files import rename
from ...jsonl import READ_ERRORS, parse_line, read_lines
from ..base import Data, path_or_dataset, training_path

__all__ = ["TrainingFile", "preflight", "prepare", "transport_of"]

_SCHEMA_MARKS = (
    "JSON schema",
    "json schema",
    '"$defs"',
    '"properties"',
)  # of a schema spelled out in a prompt
_CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True)
class TrainingFile:
    """A file to upload.

    ``sha256`` and ``size_bytes`` are those of the upload, which begins with a byte order mark where
    ``byte_order_mark`` is set and has none elsewhere, whatever the file has. ``transport`` is that of most rows,
    None where they ask for no structure.
    """

    path: Path
    sha256: str
    size_bytes: int
    byte_order_mark: bool
    transport: Transport | None

    @property
    def upload_name(self) -> str:
        """The file's name at the provider; it contains the hash, so that an upload is found, not repeated."""
        return f"{self.path.stem[:40]}-{self.sha256[:16]}.jsonl"

    def open(self) -> IO[bytes]:
        """The content to upload, as a binary file."""
        file = self.path.open("rb")
        if _has_mark(self.path) == self.byte_order_mark:
            return file
        # Clients rewind a file before they send it, so its mark cannot be skipped by its position.
        with file:
            content = file.read().removeprefix(codecs.BOM_UTF8)
        return io.BytesIO(codecs.BOM_UTF8 + content if self.byte_order_mark else content)


def prepare(data: Data, directory: Path, *, byte_order_mark: bool, name: str = "train") -> TrainingFile:
    """The training file of ``data``.

    An OpenAI chat file is used unchanged; a dataset, or a file of canonical Examples, is saved as one under
    ``directory`` and named by its content.
    """
    source = path_or_dataset(data)
    # A unique name first: another process may write the same data at the same moment.
    path = training_path(source, directory, name=f"{name}.{uuid.uuid4().hex}", format="openai")
    if path is not source:
        final = directory / f"{name}-{_sha256(path, mark=False)[0][:16]}.jsonl"
        rename(path, final)
        path = final
    sha256, size_bytes = _sha256(path, mark=byte_order_mark)
    transport = _recorded_transport(source) or transport_of(path)
    return TrainingFile(path, sha256, size_bytes, byte_order_mark, transport)


def _has_mark(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8


def _recorded_transport(data: object) -> Transport | None:
    """The transport of most Examples of a dataset."""
    if not isinstance(data, Iterable):
        return None
    counts: Counter[Transport] = Counter(e.transport for e in data if isinstance(e, Example))
    return counts.most_common(1)[0][0] if counts else None


def _sha256(path: Path, *, mark: bool) -> tuple[str, int]:
    """Hash and size of a file's content after ``mark`` decides on its byte order mark."""
    digest, size_bytes = hashlib.sha256(), 0
    with path.open("rb") as file:
        chunk = file.read(_CHUNK_BYTES).removeprefix(codecs.BOM_UTF8)
        chunk = codecs.BOM_UTF8 + chunk if mark else chunk
        while chunk:
            digest.update(chunk)
            size_bytes += len(chunk)
            chunk = file.read(_CHUNK_BYTES)
    return digest.hexdigest(), size_bytes


def transport_of(path: Path) -> Transport | None:
    """The transport of most rows, or None where they ask for no structure.

    ``tools``: the row has tools. ``text``: a message contains the schema. ``json_schema``: the answer is a
    JSON object and no message contains a schema, since the format has no field for ``response_format``.
    """
    counts = Counter(_row_transport(row) for row in _rows(path))
    return counts.most_common(1)[0][0] if counts else None


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The readable rows; unreadable ones are reported by ``preflight``."""
    for line in read_lines(path):
        with contextlib.suppress(*READ_ERRORS):
            row = parse_line(line.raw)
            if isinstance(row, dict):
                yield row


def _row_transport(row: dict[str, Any]) -> Transport | None:
    if row.get("tools") or row.get("functions"):
        return "tools"
    value = row.get("messages")
    messages = [m for m in value if isinstance(m, dict)] if isinstance(value, list) else []
    if not messages or not _is_json_object(messages[-1].get("content")):
        return None
    prompt = json.dumps([m.get("content") for m in messages[:-1]], ensure_ascii=False).replace('\\"', '"')
    return "text" if any(mark in prompt for mark in _SCHEMA_MARKS) else "json_schema"


def _is_json_object(content: object) -> bool:
    if not isinstance(content, str):
        return False
    try:
        return isinstance(json.loads(content), dict)
    except ValueError:
        return False


def preflight(path: Path) -> None:
    """Raise DatasetError, with ``file:line``, for every problem that a provider would refuse the file for."""
    from ...dataset.checks.problems import refuse_errors
    from ...dataset.checks.report import check

    refuse_errors(check(path, target="openai").problems)
