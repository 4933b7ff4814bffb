"""The ``--schema`` option: the class that decides which answers are valid, and the record of it beside a data set."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from ..answer_classes import is_importable
from ..answer_values import class_schema
from ..dataset.schema.load import YAML_SUFFIXES, load_schema
from ..errors import ConfigurationError
from ..files import read_json, write_json
from ..jsonl import READ_ERRORS, parse_line, read_lines
from ..printable import one_line
from .build_folder import folder_of
from .command import say

__all__ = ["SchemaOption", "TrainSchemaOption", "answer_class", "remember_schema", "tell_class"]

_HELP = (
    "Class that answers are validated by and written as: schema.yaml, schema.py:Class or module:Class (Python code is "
    "run)."
)
SchemaOption = Annotated[
    str | None,
    typer.Option(
        "--schema",
        help=f"{_HELP} Default: the data set's own YAML schema where build recorded one, else the JSON schema stored "
        "with the data.",
    ),
]
TrainSchemaOption = Annotated[
    str | None, typer.Option("--schema", help=f"{_HELP} Default: the rows are trained as they are.")
]

_RECORD = "schema.json"


def remember_schema(build_folder: Path, source: str, output_cls: type[BaseModel]) -> None:
    """Record in a build's folder which ``--schema`` its data set was made with."""
    write_json(build_folder / _RECORD, {"source": source, "schema": class_schema(output_cls)})


def answer_class(source: str | None, data: Path, *, hint: str | None = None) -> type[BaseModel] | None:
    """The class that ``--schema`` names; without it that of the data set's own, unchanged YAML file, else None.

    A data file never causes Python code to run: where the data set was made with a Python class, this only says how
    to name it (as ``build`` recorded it, or as the rows do), or with ``hint`` where no class is known. Raises
    ConfigurationError where the class that ``--schema`` names cannot be loaded.
    """
    if source is not None:
        return load_schema(source)
    recorded, schema = _recorded(data)
    if recorded is not None and Path(recorded).suffix.lower() in YAML_SUFFIXES:
        with contextlib.suppress(ConfigurationError):
            output_cls = load_schema(recorded)
            if class_schema(output_cls) == schema:
                return output_cls
    if named := recorded or _named_by_rows(data) or hint:
        say(f"validated by the stored JSON schema alone; --schema {named} validates by the class")
    return None


def tell_class(data: Path) -> None:
    """Say how to name the data set's class where it is a Python class, for a command that was given none."""
    named = _recorded(data)[0] or _named_by_rows(data)
    if named and Path(named).suffix.lower() not in YAML_SUFFIXES:
        say(f"scored by the stored JSON schema alone; --schema {named} scores by the class")


def _named_by_rows(data: Path) -> str | None:
    """The ``answer_class`` of the first row, where it can be named in another process."""
    try:
        line = next(read_lines(data, torn_from=None), None)
        row = None if line is None else parse_line(line.raw)
    except (OSError, *READ_ERRORS):
        return None
    named = row.get("answer_class") if isinstance(row, dict) else None
    return named if isinstance(named, str) and is_importable(named) else None


def _recorded(data: Path) -> tuple[str | None, Any]:
    """The ``--schema`` of the build that wrote ``data``, and its JSON schema, from ``data.build`` beside it."""
    stem = data.name.removesuffix(data.suffix).removesuffix(".validation")
    try:
        record = read_json(folder_of(data.with_name(stem + data.suffix)) / _RECORD)
    except (OSError, ValueError):
        return None, None
    source = record.get("source")
    return (
        (source, record.get("schema"))
        if isinstance(source, str) and one_line(source) == source
        else (None, None)
    )
