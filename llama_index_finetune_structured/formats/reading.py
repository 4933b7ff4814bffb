"""A line of any training file -> an Example; which format it is, is told line by line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DatasetError
from ..example import Example
from ..jsonl import READ_ERRORS, Line, one_line_reason, parse_line, read_lines
from ..jsonl_store import shards_of
from .openai import from_openai

__all__ = ["example_from_row", "read_examples"]


def read_examples(path: Path, *, torn_from: int = 1) -> Iterator[Example]:
    """Examples of a JSON Lines file and of a capture's shards beside it, one by one.

    Each line is a canonical Example or an OpenAI chat line. Blank lines are skipped, a byte order mark is allowed,
    and a last line that a crash cut short is left out with a logged warning (``torn_from``: see read_lines; it is for
    ``path`` itself). Raises DatasetError: ``file:line`` at the first line that does not fit, or the file that cannot
    be opened.
    """
    for file in shards_of(path):
        try:
            for line in read_lines(file, torn_from=torn_from if file == path else 1):
                yield _example_from_line(line)
        except OSError as error:
            raise DatasetError(
                f"{file}: cannot be read ({error.strerror}); expected a JSON Lines file"
            ) from error


def _example_from_line(line: Line) -> Example:
    try:
        return example_from_row(parse_line(line.raw))
    except READ_ERRORS as error:
        raise DatasetError(
            f"{line.where}: {one_line_reason(error)}; see every problem of the file with check(path), in the shell "
            "`finetune-structured check`"
        ) from error


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
