"""JSON Lines: read files line by line, parse lines strictly, write atomically and repair a torn last line."""

from __future__ import annotations

import codecs
import errno
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from .descriptors import open_regular, write_all
from .errors import DatasetError
from .example import LINE_LEVELS, is_too_deep, refuse_constant
from .files import replacing, unwritable
from .printable import package_logger

__all__ = [
    "MAX_LINE_BYTES",
    "READ_ERRORS",
    "Line",
    "is_json",
    "one_line_reason",
    "parse_line",
    "read_lines",
    "repair_tail",
    "require_utf8",
    "save_lines",
    "too_long",
]

_logger = package_logger(__name__)
_BLOCK_BYTES = 1 << 16  # chosen: one read finds the start of nearly every last line
MAX_LINE_BYTES = 16 << 20
"""Most bytes of a line, its end left out. Chosen: far above every context window, and to check one line takes about 150
times its size in memory."""
READ_ERRORS = (ValueError, RecursionError)
"""The exceptions that ``parse_line`` may raise."""


class Line(NamedTuple):
    """One line of a file without its line ending. ``number`` counts from 1 and includes blank lines."""

    path: Path
    number: int
    raw: bytes
    has_ending: bool = True

    @property
    def is_torn(self) -> bool:
        """Whether a crash cut the line short: it has no line ending and is not JSON."""
        return not self.has_ending and not is_json(self.raw)

    @property
    def where(self) -> str:
        """``file:line``, for error messages."""
        return f"{self.path}:{self.number}"


def read_lines(path: Path, *, torn_from: int | None = 1) -> Iterator[Line]:
    """Yield the lines of one file that are not blank; a byte order mark at the start is dropped.

    A last line that has no line ending and is not JSON was torn by a crash: it is skipped with a logged warning if
    its number is at least ``torn_from``. With 2, a file that contains nothing else is read as it is, since it is
    probably no JSON Lines file; with None, no line is skipped. Safe while another process appends. Raises OSError
    where the file cannot be opened or is no regular file, or at a line of more than ``MAX_LINE_BYTES``.
    """
    with open_regular(path) as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 2):  # so that no more of a line is read into memory
            number += 1
            if len(raw) > MAX_LINE_BYTES and len(raw.rstrip(b"\r\n")) > MAX_LINE_BYTES:
                raise OSError(errno.EFBIG, f"line {number} {too_long()}", str(path))
            text = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            line = Line(path, number, text.rstrip(b"\r\n"), raw.endswith(b"\n"))
            if not text.strip():
                continue
            if torn_from is not None and number >= torn_from and line.is_torn:
                _logger.warning("%s: the last line is incomplete and is skipped", line.where)
                return
            yield line


def too_long() -> str:
    """What is wrong with a line of more than ``MAX_LINE_BYTES``, and how to mend it."""
    return f"has more than {MAX_LINE_BYTES:,} bytes; shorten it, or leave it out"


def is_json(raw: bytes) -> bool:
    """Whether the bytes are one JSON value that Python can parse."""
    try:
        json.loads(raw)
    except READ_ERRORS:
        return False
    return True


def parse_line(raw: bytes) -> Any:
    """Parse a line of UTF-8 as JSON.

    NaN, infinities and lone surrogates are refused, since they cannot be written to a valid file again. Raises
    ValueError or RecursionError (``READ_ERRORS``); ``one_line_reason`` describes the error.
    """
    text = raw.decode("utf-8")
    value = json.loads(text, parse_constant=refuse_constant, parse_float=_finite_float)
    if is_too_deep(value, LINE_LEVELS, text):
        raise RecursionError("JSON is nested too deeply")
    if b"\\ud" in raw or b"\\uD" in raw:
        require_utf8(json.dumps(value, ensure_ascii=False))
    return value


def _finite_float(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else refuse_constant(digits)


def require_utf8(text: str) -> bytes:
    """The text in UTF-8. Raises ValueError for what that cannot encode (a lone surrogate)."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"a lone surrogate ({text[error.start]!a}), which UTF-8 cannot encode: decode the text that it came from "
            "anew"
        ) from None


def one_line_reason(error: BaseException) -> str:
    """Describe an error of reading a row in one line, with the field (Pydantic) or the column (JSON)."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        reason = str(first["msg"]).removeprefix("Value error, ")
        return f"{field}: {reason}" if field else reason
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON ({error.msg} at column {error.colno})"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 text (byte {error.start + 1} of the line)"
    if isinstance(error, RecursionError):
        return "JSON is nested too deeply"
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def save_lines(path: Path, lines: Iterable[str]) -> Path:
    """Write lines to a path that a user gave, atomically; returns ``path``.

    Raises ConfigurationError where it cannot be written, DatasetError for a line that UTF-8 cannot encode, and what
    ``lines`` raises.
    """
    broken: list[OSError] = []

    def own() -> Iterator[str]:
        try:
            yield from lines
        except OSError as error:  # of what makes the lines, such as a retriever's connection
            broken.append(error)
            raise

    try:
        with replacing(path) as file:
            for number, line in enumerate(own(), start=1):
                try:
                    size = len(require_utf8(line))
                except ValueError as error:
                    raise DatasetError(f"{path}: row {number} has {error}") from error
                if size > MAX_LINE_BYTES:
                    raise DatasetError(f"{path}: row {number} {too_long()}")
                file.write(line + "\n")
    except OSError as error:
        if broken:
            raise
        raise unwritable(path, error) from error
    return path


def repair_tail(descriptor: int) -> None:
    """Remove a torn last line; add the line ending to a complete last line that lacks it.

    ``descriptor``: a file open for reading and appending that no other process writes.
    """
    size = os.fstat(descriptor).st_size
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return
    start = _last_line_start(descriptor, size)
    if is_json(os.pread(descriptor, size - start, start)):
        write_all(descriptor, b"\n")
    else:
        os.ftruncate(descriptor, start)


def _last_line_start(descriptor: int, size: int) -> int:
    """The offset of the byte after the last line ending, found by reading blocks backwards."""
    end = size
    while end > 0:
        begin = max(0, end - _BLOCK_BYTES)
        newline = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        end = begin
    return 0
