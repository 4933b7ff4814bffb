"""The rows of a training source: lines of a file and of the shards beside it, or Examples in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ...errors import ConfigurationError
from ...example import Example
from ...formats.reading import holds_examples
from ...jsonl import read_lines
from ...jsonl_store import shards_of
from ...printable import package_logger
from .lines import LineReader
from .problems import Fault, Problem, refuse_errors

__all__ = [
    "CheckSource",
    "SourceRow",
    "as_source",
    "empty",
    "files_of",
    "parsed_rows",
    "readable_examples",
    "reader_of",
    "source_name",
    "source_rows",
    "unreadable",
]

_log = package_logger(__name__)
_IN_MEMORY = "dataset"  # stands for the file's name where the Examples are in memory
CheckSource = str | Path | tuple[Example, ...]
"""A file, with a capture's other shards, or Examples in memory."""


class SourceRow(NamedTuple):
    """One line of a file, or one Example; ``number`` counts from 1, blank lines included.

    ``torn``: the last line of its file, without line ending, that a crash cut short. The only line of a file that
    is no shard does not count: such a file is probably no JSON Lines file.
    """

    file: str
    number: int
    content: bytes | Example
    torn: bool = False

    def problem(self, fault: Fault) -> Problem:
        """The fault as a problem of this row."""
        return Problem(fault.code, fault.message, self.file, self.number)


def as_source(source: str | Path | Iterable[Example]) -> CheckSource:
    """The source with its Examples as a tuple. Raises ConfigurationError where it holds anything else."""
    if isinstance(source, str | Path):
        if "\0" in str(source):
            raise ConfigurationError(
                f"source: {str(source)!r} holds a null character, which no path may hold"
            )
        return source
    if not isinstance(source, Iterable):
        raise ConfigurationError(
            f"source: is a {type(source).__name__}, expected Examples, or the path of a file"
        )
    examples = tuple(source)
    wrong = next((type(item).__name__ for item in examples if not isinstance(item, Example)), None)
    if wrong is not None:
        raise ConfigurationError(f"source: holds {wrong}, expected Examples, or the path of a file")
    return examples


def source_name(source: CheckSource) -> str:
    """The source's name in problems of the whole file."""
    return _IN_MEMORY if isinstance(source, tuple) else str(source)


def files_of(source: CheckSource) -> list[Path]:
    """The files that exist; none for Examples in memory."""
    return [file for file in shards_of(source) if file.exists()] if isinstance(source, str | Path) else []


def source_rows(source: CheckSource) -> Iterator[SourceRow]:
    """The lines that are not blank, or the Examples. Raises OSError where a file cannot be read."""
    if isinstance(source, tuple):
        for number, example in enumerate(source, start=1):
            yield SourceRow(_IN_MEMORY, number, example)
        return
    for path in shards_of(source):
        for line in read_lines(path, torn_from=None):
            is_first = line.number == 1 and path == Path(source)
            yield SourceRow(str(path), line.number, line.raw, torn=not is_first and line.is_torn)


def reader_of(source: CheckSource, target: str) -> LineReader:
    """The reader of a source's rows for a target. Raises OSError where a file cannot be read."""
    return LineReader(target, of_examples=isinstance(source, tuple) or holds_examples(Path(source)))


def parsed_rows(source: CheckSource) -> tuple[SourceRow, ...]:
    """The rows with their Examples, as ``check`` reads them for the local engine; a torn last line is left out.

    Raises DatasetError with every line that cannot be read, or where there is no row.
    """
    rows: list[SourceRow] = []
    problems: list[Problem] = []
    try:
        reader = reader_of(source, "local")
        for row in source_rows(source):
            examples, faults = reader.read_row(row.content, torn=row.torn)
            problems += [row.problem(fault) for fault in faults]
            rows += [row._replace(content=example) for example in examples]
    except OSError as error:
        problems.append(unreadable(source, error))
    if not rows and all(problem.is_warning for problem in problems):
        problems.append(empty(source))
    refuse_errors(problems)
    for problem in problems:
        _log.warning("%s", problem)
    return tuple(rows)


def readable_examples(source: CheckSource) -> Iterator[Example]:
    """The rows that can be read for the local engine, as far as the source can be read."""
    with suppress(OSError):
        reader = reader_of(source, "local")
        for row in source_rows(source):
            examples, _ = reader.read_row(row.content, torn=row.torn)
            yield from examples


def unreadable(source: CheckSource, error: OSError) -> Problem:
    """The problem of a source whose file cannot be read."""
    return Problem("cannot_read", f"{error.strerror or error}", source_name(source))


def empty(source: CheckSource) -> Problem:
    """The problem of a source without rows."""
    return Problem("no_examples", "it is empty", source_name(source))
