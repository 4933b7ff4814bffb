"""Read Examples from canonical, OpenAI and TRL files; the format is detected line by line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from ..errors import DatasetError
from ..example import Example
from ..jsonl import READ_ERRORS, Line, one_line_reason, parse_line, read_lines
from ..jsonl_store import shards_of
from .trl import from_trl

__all__ = ["RowForm", "example_from_row", "first_keys", "holds_examples", "read_examples", "row_form"]

RowForm = Literal["example", "chat", "completion", "preference", "gradient"]
"""The form of a row: an Example, chat ``messages``, TRL's ``prompt`` with ``completion``, OpenAI's DPO, Gradient."""
_FORMS: dict[str, RowForm] = {
    "input": "preference",
    "inputs": "gradient",
    "prompt": "completion",
    "messages": "chat",
}
_SHOWN_KEYS = 6  # chosen: keys of an unknown row that an error names


def read_examples(path: Path, *, torn_from: int = 1) -> Iterator[Example]:
    """Yield the Examples of a JSON Lines file and of the capture shards beside it.

    Each line is in a form that ``example_from_row`` reads. Blank lines are skipped, a byte order mark is allowed,
    and a torn last line is skipped with a logged warning.

    Args:
        path: The file; its shards (``path.shard-*``) are read after it.
        torn_from: Least line number of a last line that counts as torn. With 2 a file of one broken line is an
            error, since it is probably no JSON Lines file. Applies to ``path`` itself, not to shards.

    Raises:
        DatasetError: At the first invalid line, named as ``file:line``, or at a file that cannot be opened.
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


def holds_examples(path: Path) -> bool:
    """Whether a file is one of Examples, as captures and ``FinetuneDataset.save()`` write them, by its first row.

    Hosted engines read all rows of such a file as Examples and upload them in the provider's form; any other file
    they upload as it is.

    Args:
        path: The file; where it has no row, its shards are looked at. Raises OSError where it cannot be read.
    """
    for file in shards_of(path):
        for line in read_lines(file, torn_from=None):
            with contextlib.suppress(*READ_ERRORS):
                row = parse_line(line.raw)
                if isinstance(row, dict):
                    return row_form(row) == "example"
    return False


def row_form(row: dict[str, Any]) -> RowForm | None:
    """The form of a parsed row by its keys, or None where no form has such keys.

    Args:
        row: The row.
    """
    if "messages" in row and "answer" in row:
        return "example"
    return next((form for key, form in _FORMS.items() if key in row), None)


def example_from_row(row: Any) -> Example:
    """Convert a parsed line to an Example.

    Args:
        row: The line as JSON parses it: a canonical Example, chat ``messages`` as OpenAI or TRL write them, or
            TRL's ``prompt`` with ``completion``. A stored ``id`` is ignored, since ids are computed.

    Raises:
        ValueError: The line is in none of these forms, or a field of it is not valid.
    """
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}")
    form = row_form(row)
    if form == "example":
        return Example.model_validate({key: value for key, value in row.items() if key != "id"})
    if form in ("chat", "completion"):
        return from_trl(row)
    found = first_keys(row) or "no keys"
    raise ValueError(
        f"expected 'messages' (an Example or a chat line), or 'prompt' and 'completion', found {found}"
    )


def first_keys(row: Iterable[Any]) -> str:
    """The first keys of an unknown row, in order, for an error."""
    return ", ".join(sorted(map(str, row))[:_SHOWN_KEYS])
