"""Labels of documents: JSON Lines, JSON, CSV, or a folder of JSON files named like the documents."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ...descriptors import read_text_file
from ...errors import DatasetError
from ...formats.reading import first_keys
from ...jsonl import READ_ERRORS, one_line_reason, parse_line, read_lines
from .schema_branches import branches

__all__ = ["Label", "LabelSource", "read_labels", "typed_cells"]

LabelSource = str | Path | Mapping[str, Any]
"""A file (JSON Lines, JSON or CSV), a folder of JSON files, or answers by the names of documents."""

_DOCUMENT_KEYS = ("document", "document_id", "file", "file_name", "filename")
_ANSWER_KEY = "answer"
_MAX_BYTES = 100_000_000  # chosen: a CSV or JSON file of labels; JSON Lines are read line by line
_DELIMITERS = ",;\t|"
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?', re.IGNORECASE)  # as Excel writes it before the columns
_SPREADSHEETS = (".xlsx", ".xlsm", ".xls", ".ods", ".numbers")


@dataclass(frozen=True)
class Label:
    """The answer to one document, or what is wrong with its row.

    ``document``: as the row names it. ``where``: ``file:line``. ``answer``: a JSON value; None: the document has none.
    ``is_flat``: the answer is of a CSV row, all of whose values are text.
    """

    document: str
    where: str
    answer: Any = None
    fault: str | None = None
    is_flat: bool = False


def read_labels(source: LabelSource) -> Iterator[Label]:
    """The labels one by one, those with a fault included. Raises DatasetError where there is nothing to read."""
    if isinstance(source, Mapping):
        return (Label(str(name), f"labels[{name!r}]", answer) for name, answer in source.items())
    path, suffix = Path(source), Path(source).suffix.lower()
    if path.is_dir():
        return _from_folder(path)
    if suffix in _SPREADSHEETS:
        raise DatasetError(f"{path}: a spreadsheet, which cannot be read; save it as CSV (UTF-8)")
    if suffix == ".json" and (value := _whole(path)) is not None:
        return _of_json(value, path)
    return _from_csv(path) if suffix in (".csv", ".tsv") else _from_lines(path)


def _cannot_be_read(path: Path, error: OSError) -> DatasetError:
    return DatasetError(
        f"{path}: cannot be read ({error.strerror}); expected JSON Lines, a JSON or CSV file, or a folder of JSON "
        "files"
    )


def _text_of(path: Path) -> str:
    """The text of a file. Raises DatasetError."""
    try:
        return read_text_file(path, max_bytes=_MAX_BYTES)
    except OSError as error:
        raise _cannot_be_read(path, error) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DatasetError(
            f"{path}:{line}: not UTF-8 text (byte {error.start + 1}); save it as UTF-8"
        ) from error


def _whole(path: Path) -> list[Any] | dict[str, Any] | None:
    """The list of a JSON file, or its answers by document; None where it is JSON Lines, or no JSON at all."""
    try:
        value = parse_line(_text_of(path).encode())
    except READ_ERRORS:
        return None
    is_row = isinstance(value, dict) and any(map(_is_document_key, value))
    return None if is_row or not isinstance(value, list | dict) else value


def _of_json(value: list[Any] | dict[str, Any], path: Path) -> Iterator[Label]:
    if isinstance(value, dict):
        for name, answer in value.items():
            yield Label(name, f"{path}[{name!r}]", answer)
        return
    for number, row in enumerate(value):
        where = f"{path}[{number}]"
        try:
            yield _of_row(row, where)
        except READ_ERRORS as error:
            yield Label("", where, fault=one_line_reason(error))


def _from_lines(path: Path) -> Iterator[Label]:
    try:
        for line in read_lines(path, torn_from=None):
            try:
                yield _of_row(parse_line(line.raw), line.where)
            except READ_ERRORS as error:
                yield Label("", line.where, fault=one_line_reason(error))
    except OSError as error:
        raise _cannot_be_read(path, error) from error


def _of_row(row: Any, where: str) -> Label:
    if not isinstance(row, Mapping):
        raise ValueError(f"expected an object with 'document' and 'answer', found {type(row).__name__}")
    key = _document_key(row)
    name = row[key]
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{key} is {name!r}, expected the name of a document's file")
    others = {other: value for other, value in row.items() if other != key}
    if not others:
        fault = 'no answer beside the document; write "answer": {...}, or null for a document of another kind'
        return Label(name, where, fault=fault)
    answer = others.get(_ANSWER_KEY)
    is_inside = list(others) == [_ANSWER_KEY] or isinstance(answer, dict)  # what stands beside it are notes
    return Label(name, where, answer if is_inside else others)


def _is_document_key(name: Any) -> bool:
    return re.sub(r"[\s-]+", "_", str(name).strip().casefold()) in _DOCUMENT_KEYS


def _document_key(names: Iterable[Any], expected: str = "'document' and 'answer'") -> str:
    known = list(names)
    key = next((key for key in _DOCUMENT_KEYS if key in known), None)
    key = key or next(filter(_is_document_key, known), None)
    if key is None:
        raise ValueError(f"names no document: expected {expected}, found {first_keys(known) or 'nothing'}")
    return key


def _from_folder(path: Path) -> Iterator[Label]:
    """One label a JSON file, for the document of the same path without its suffix."""
    files = sorted(file for file in path.rglob("*.json") if not _is_hidden(file.relative_to(path)))
    if not files:
        raise DatasetError(f"{path}: no .json files in it; expected one for each document, named like it")
    for file in files:
        name = file.relative_to(path).with_suffix("").as_posix()
        try:
            yield Label(name, str(file), parse_line(read_text_file(file, max_bytes=_MAX_BYTES).encode()))
        except OSError as error:
            yield Label(name, str(file), fault=f"cannot be read ({error.strerror})")
        except READ_ERRORS as error:
            yield Label(name, str(file), fault=one_line_reason(error))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _from_csv(path: Path) -> Iterator[Label]:
    text = _text_of(path)
    separator = _SEPARATOR_LINE.fullmatch(text.partition("\n")[0])
    before = 0 if separator is None else 1
    rows = csv.reader(io.StringIO(text, newline=""), _dialect(text, separator), strict=True)
    try:
        columns = [column.strip() for column in next(islice(rows, before, None), [])]
        key = _document_key(columns, "a column 'document'")
        repeated = sorted({column for column in columns if column and columns.count(column) > 1})
        if repeated:
            raise ValueError(f"the column {repeated[0]!r} is there twice; rename one")
    except (ValueError, csv.Error) as error:
        raise DatasetError(f"{path}:{before + 1}: the line of the columns: {error}") from error
    line = rows.line_num + 1
    try:
        for row in rows:
            if any(cell.strip() for cell in row):
                yield _of_cells(columns, row, key, f"{path}:{line}")
            line = rows.line_num + 1
    except csv.Error as error:
        yield Label(
            "", f"{path}:{line}", fault=f"no CSV ({error}), and nothing after it is read; close the quotes"
        )


def _dialect(text: str, separator: re.Match[str] | None) -> type[csv.Dialect]:
    """The columns' separator, by the line of their names: values of other lines may hold any."""
    first = text.partition("\n")[0]
    delimiter_in_use = max(_DELIMITERS, key=first.count) if separator is None else separator[1]

    class Separated(csv.excel):
        delimiter = delimiter_in_use

    return Separated


def _of_cells(columns: list[str], row: list[str], key: str, where: str) -> Label:
    cells = dict(zip(columns, row, strict=False))
    found, expected = len(row), len(columns)
    name = cells.get(key, "").strip()
    if not name:
        return Label("", where, fault=f"the column {key!r} is empty; write the name of the document's file")
    if found != expected:
        fault = f"{found} cells, expected {expected}; quote texts that hold the separator"
        return Label(name, where, fault=fault)
    if any(cell.strip() for column, cell in zip(columns, row, strict=True) if not column):
        return Label(name, where, fault="a value in a column without a name; name the column, or empty it")
    written = {column: cell.strip() for column, cell in cells.items() if column != key and cell.strip()}
    if not written:
        fault = "no value in any column; fill the row, or write null in a column 'answer': of another kind"
        return Label(name, where, fault=fault)
    try:
        if _ANSWER_KEY in written and len(written) == 1 and written[_ANSWER_KEY][:1] in "{[n":
            return Label(name, where, parse_line(written[_ANSWER_KEY].encode()))
        return Label(name, where, _nested(written), is_flat=True)
    except READ_ERRORS as error:
        return Label(name, where, fault=one_line_reason(error))


def _nested(cells: Mapping[str, str]) -> dict[str, Any]:
    """The object of a row: ``seller.name`` is the name of the seller."""
    answer: dict[str, Any] = {}
    for column, cell in cells.items():
        *outer, last = column.split(".")
        place = answer
        for name in outer:
            inner = place.setdefault(name, {})
            if not isinstance(inner, dict):
                raise ValueError(f"the columns {name!r} and {column!r} are of the same field; remove one")
            place = inner
        if last in place:
            raise ValueError(
                f"the columns {column!r} and {column + '.'!r}… are of the same field; remove one"
            )
        place[last] = cell
    return answer


def typed_cells(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any] | None = None) -> Any:
    """The object of a CSV row with its texts as the schema's types: numbers, booleans, and lists written as JSON."""
    root = schema if root is None else root
    choices = branches(schema, root)
    if isinstance(value, dict):
        properties: Mapping[str, Any] = next(
            (choice["properties"] for choice in choices if "properties" in choice), {}
        )
        return {name: typed_cells(inner, properties.get(name) or {}, root) for name, inner in value.items()}
    kinds = {kind for choice in choices for kind in _kinds(choice)}
    if not kinds or "string" in kinds:  # such as a Decimal, whose text keeps every digit
        return value
    try:
        read = json.loads(value.lower() if kinds <= {"boolean", "null"} else value)
    except ValueError:
        return value
    return read


def _kinds(schema: Mapping[str, Any]) -> set[str]:
    kind = schema.get("type")
    if kind is None and isinstance(schema.get("enum"), list):
        return {"string"} if all(isinstance(value, str) for value in schema["enum"]) else {"integer"}
    return {kind} if isinstance(kind, str) else set(kind or ())
