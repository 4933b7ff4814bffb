"""Read (question, answer) pairs from tuples, mappings, Examples, a QueryResponseDataset or a file of these."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from ..descriptors import open_regular
from ..errors import DatasetError
from ..example import Example
from ..formats.reading import example_from_row, first_keys
from ..jsonl import READ_ERRORS, one_line_reason, parse_line, read_lines

__all__ = ["Pair", "PairSource", "read_pairs"]


class HasPairs(Protocol):
    """What is used of LlamaIndex's QueryResponseDataset; a Protocol because that class is deprecated."""

    @property
    def qr_pairs(self) -> list[tuple[str, str]]: ...


PairSource = str | Path | HasPairs | Iterable[tuple[str, Any] | Mapping[str, Any] | Example]
"""A file (JSONL, or a QueryResponseDataset's JSON), a QueryResponseDataset, or rows in memory."""


@dataclass(frozen=True)
class Pair:
    """A question, its answer, and the source of the answer as far as it is known.

    ``node_ids`` are the chunks that support the answer; the others come with captured Examples.
    """

    query: str
    answer: Any
    node_ids: frozenset[str] = frozenset()
    document_id: str | None = None
    answer_schema: dict[str, Any] | None = None
    schema_name: str | None = None
    answer_class: str | None = None


def read_pairs(source: PairSource) -> Iterator[Pair]:
    """The pairs, one by one. Raises DatasetError naming file and line, or the row."""
    if isinstance(source, str | Path):
        yield from _from_file(Path(source))
        return
    rows = source.qr_pairs if hasattr(source, "qr_pairs") else source
    for number, row in enumerate(rows):
        yield _pair_or_error(row, f"pairs[{number}]")


def _pair_or_error(row: Any, where: str) -> Pair:
    """The row as a Pair; ``where`` is its place in error messages."""
    try:
        return _pair(row)
    except READ_ERRORS as error:
        raise DatasetError(f"{where}: {one_line_reason(error)}") from error


def _from_file(path: Path) -> Iterator[Pair]:
    try:
        file = open_regular(path)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from error
    with file:
        if _is_query_response_json(_first_line(file)):
            file.seek(0)
            yield from _from_query_response(path, file.read())
            return
    for line in read_lines(path, torn_from=None):
        try:
            row = parse_line(line.raw)
        except READ_ERRORS as error:
            raise DatasetError(f"{line.where}: {one_line_reason(error)}") from error
        yield _pair_or_error(row, line.where)


def _first_line(file: BinaryIO) -> bytes:
    """The first line that is not blank, without a byte-order mark."""
    return next((line for raw in file if (line := raw.removeprefix(codecs.BOM_UTF8)).strip()), b"")


def _is_query_response_json(first: bytes) -> bool:
    """Whether a file with this first line is one JSON document (a QueryResponseDataset) rather than JSONL.

    A line of JSONL is a complete JSON object; the first line of an indented document is not, and has no key
    yet (a damaged row of JSONL does).
    """
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return b":" not in first or b'"queries"' in first
    return isinstance(row, dict) and "queries" in row


def _from_query_response(path: Path, text: bytes) -> Iterator[Pair]:
    try:
        whole = json.loads(text.decode("utf-8-sig"))
        queries, responses = dict(whole["queries"]), dict(whole["responses"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DatasetError(
            f"{path}: neither JSONL nor a QueryResponseDataset with 'queries' and 'responses' "
            f"({one_line_reason(error)})"
        ) from error
    for key, query in queries.items():
        if key not in responses:
            raise DatasetError(f"{path}: query {key!r} has no response; add one or remove the query")
        yield _pair_or_error((query, responses[key]), f"{path}: query {key!r}")


def _pair(row: Any) -> Pair:
    if isinstance(row, Example):
        return _from_example(row)
    if isinstance(row, Mapping):
        return _from_mapping(row)
    if not isinstance(row, tuple | list) or len(row) != 2:
        raise ValueError(f"expected (question, answer), found {type(row).__name__}")
    return Pair(_question(row[0]), row[1])


def _question(query: Any) -> str:
    if not isinstance(query, str) or not query.strip():
        raise ValueError(f"the question is {query!r}, expected text")
    return query


def _from_mapping(row: Mapping[str, Any]) -> Pair:
    if "messages" in row:
        return _from_example(example_from_row(dict(row)))
    if "query" not in row or "response" not in row:
        raise ValueError(f"expected 'query' and 'response', found {first_keys(row) or 'no keys'}")
    node, document = _optional_text(row, "node_id"), _optional_text(row, "document_id")
    return Pair(
        _question(row["query"]),
        row["response"],
        node_ids=frozenset(() if node is None else (node,)),
        document_id=document,
    )


def _optional_text(row: Mapping[str, Any], name: str) -> str | None:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name} is {value!r}, expected text")
    return value


def _from_example(example: Example) -> Pair:
    if example.query is None:
        raise ValueError("the example has no 'query' (the question before retrieval); set it")
    return Pair(
        example.query,
        example.answer_text(),
        node_ids=frozenset(s.node_id for s in example.sources),
        document_id=example.document_id,
        answer_schema=example.answer_schema,
        schema_name=example.schema_name,
        answer_class=example.answer_class,
    )
