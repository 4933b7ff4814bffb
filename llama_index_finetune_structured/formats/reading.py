"""Lines of a file <-> Examples: reading tells formats apart line by line, writing is whole or not at all."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from ..errors import DatasetError
from ..example import Example
from ..files import replacing
from ..jsonl_store import is_json, shards_of
from .openai import from_openai

__all__ = [
    "BOM",
    "READ_ERRORS",
    "example_from_row",
    "parse_line",
    "plain_reason",
    "read_examples",
    "require_text",
    "write_lines",
]

_log = logging.getLogger(__name__)
BOM = b"\xef\xbb\xbf"
# What reading a row of any shape may raise.
READ_ERRORS = (ValueError, RecursionError)


def read_examples(path: Path) -> Iterator[Example]:
    """Examples of a JSONL file and of a capture's shards beside it, one by one.

    Blank lines are skipped, a byte-order mark is allowed; a last line that a crash cut short is left out
    with a logged warning. Raises DatasetError ``file:line`` at the first line that does not fit.
    """
    for file in shards_of(path):
        yield from _read_file(file, is_shard=file != path)


def _read_file(path: Path, *, is_shard: bool) -> Iterator[Example]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}); expected a JSONL file") from error
    with file:
        for number, raw in enumerate(file, start=1):
            line = raw.removeprefix(BOM) if number == 1 else raw
            if not line.strip():
                continue
            if (number > 1 or is_shard) and not raw.endswith(b"\n") and not is_json(line):
                _log.warning("%s:%d: the last line was cut short and is left out", path, number)
                return
            yield _example_from_line(line, f"{path}:{number}")


def _example_from_line(line: bytes, where: str) -> Example:
    try:
        return example_from_row(parse_line(line))
    except READ_ERRORS as error:
        raise DatasetError(
            f"{where}: {plain_reason(error)}; see every problem of the file with check(path), in the shell "
            "`finetune-structured check`"
        ) from error


def parse_line(line: bytes) -> Any:
    """The JSON value of a line of UTF-8. NaN, infinities and half surrogate pairs are refused: no file
    that is valid could hold them again. Raises ValueError or RecursionError.
    """
    value = json.loads(line.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite)
    if b"\\ud" in line or b"\\uD" in line:
        require_text(json.dumps(value, ensure_ascii=False))
    return value


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _no_constant(digits)


def require_text(text: str) -> None:
    """Refuse text that UTF-8 cannot hold. Raises ValueError."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"half a surrogate pair ({text[error.start]!a}), which UTF-8 cannot hold") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def example_from_row(row: Any) -> Example:
    """A parsed line, canonical or OpenAI chat, as an Example. Raises ValueError."""
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}")
    if "messages" not in row:
        found = ", ".join(sorted(map(str, row))[:6]) or "no keys"
        raise ValueError(f"expected 'messages' (an Example or an OpenAI chat line), found {found}")
    if "answer" not in row:
        return from_openai(row)
    return Example.model_validate({key: value for key, value in row.items() if key != "id"})


def plain_reason(error: BaseException) -> str:
    """What was wrong, in one line: Pydantic's first complaint with its place, JSON's with its column."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        reason = str(first["msg"]).removeprefix("Value error, ")
        return f"{place}: {reason}" if place else reason
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON ({error.msg} at column {error.colno})"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 text (byte {error.start + 1} of the line)"
    if isinstance(error, RecursionError):
        return "JSON nested too deeply"
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def write_lines(path: Path, lines: Iterable[str]) -> Path:
    """Write ``lines`` to ``path``, whole or not at all."""
    with replacing(path) as file:
        for line in lines:
            file.write(line + "\n")
    return path
