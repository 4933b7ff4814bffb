"""Load the Pydantic class of an answer from a YAML file, ``file.py:Class`` or ``module:Class``."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from pydantic import BaseModel

from ...answer_classes import FILE_MODULE
from ...errors import ConfigurationError
from ...example import content_hash
from .yaml import yaml_schema_class

__all__ = ["YAML_SUFFIXES", "load_schema"]

YAML_SUFFIXES = (".yaml", ".yml", ".json")
"""Suffixes, in lower case, of the files that hold a schema as YAML; JSON is YAML too."""

_EXPECTED = "expected schema.yaml, schema.py:Class or package.module:Class"


def load_schema(source: str | Path) -> type[BaseModel]:
    """The Pydantic class of an answer, from a YAML file, ``file.py:Class`` or ``module:Class``.

    A YAML file has ``name`` and ``fields``, optionally ``description``, ``types``, ``locales`` and ``rules``. A field
    is a type, or a mapping of ``type`` or ``enum``, ``description``, ``optional``, ``min`` and ``max`` (of a number's
    value, a string's length in characters, a list's number of items), and ``locales``. Types: string, integer,
    number, decimal, money, boolean, date, datetime, time, ``list of`` any type, and the names under ``types``, each of
    which has ``fields`` or ``enum``; a ``?`` at the end makes a field optional. Where there are ``locales``, decimals,
    money, dates and times stand in answers as documents write them (``AsWritten``); numbers and integers do where the
    field has its own. ``rules`` is a list of sums: ``{sum: items[].amount, equals: total, tolerance: 0.01}``. Python
    files and modules are imported, so their code runs.

    Args:
        source: Path of a file that ends in ``.yaml``, ``.yml`` or ``.json``, else ``file.py:Class`` or
            ``package.module:Class``.

    Raises:
        ConfigurationError: The source cannot be read, imported or understood; the message names file, line or class.
    """
    text = str(source)
    if Path(text).suffix.lower() in YAML_SUFFIXES:
        return yaml_schema_class(Path(text))
    location, colon, name = text.rpartition(":")
    if not colon:
        known = _own_classes(_import(text)) if text.endswith(".py") else {}
        raise ConfigurationError(f"schema {text!r}: {_class_choice(known) if known else _EXPECTED}")
    module = _import(location)
    value = getattr(module, name, None)
    if not (isinstance(value, type) and issubclass(value, BaseModel)):
        what = "no class of that name" if value is None else "not a Pydantic class"
        raise ConfigurationError(
            f"schema {text!r}: {what} in {location}; {_class_choice(_own_classes(module))}"
        )
    return value


def _class_choice(known: dict[str, type[BaseModel]]) -> str:
    return f"Pydantic classes there: {', '.join(known) or 'none'}; name one after a colon"


def _own_classes(module: ModuleType) -> dict[str, type[BaseModel]]:
    """The Pydantic classes that a module defines rather than imports."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, BaseModel) and value.__module__ == module.__name__
    }


def _import(location: str) -> ModuleType:
    path = Path(location)
    if not location.endswith(".py"):
        with _import_errors(Path.cwd(), location):
            return importlib.import_module(location)
    if not path.is_file():
        raise ConfigurationError(f"schema {location}: no such file; {_EXPECTED}")
    name = f"{FILE_MODULE}{content_hash(str(path.resolve()))[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"schema {location}: cannot be imported; {_EXPECTED}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Pydantic looks up forward references there
    with _import_errors(path.resolve().parent, location):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _import_errors(folder: Path, location: str) -> Iterator[None]:
    """Put ``folder`` first on the import path; whatever the user's code raises becomes a ConfigurationError."""
    sys.path.insert(0, str(folder))
    try:
        yield
    except (Exception, SystemExit) as error:
        where, reason = f"{location}{_error_line(location, error)}", f"{type(error).__name__}: {error}"
        raise ConfigurationError(f"schema {where}: cannot be imported ({reason}); {_EXPECTED}") from error
    finally:
        sys.path.remove(str(folder))


def _error_line(location: str, error: BaseException) -> str:
    """``:line`` of the user's file that an error of importing it points at, or an empty text."""
    if isinstance(error, SyntaxError) and _is_file(error.filename or "", location):
        return f":{error.lineno}"
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if _is_file(frame.filename, location)
    ]
    return f":{frames[-1].lineno}" if frames else ""


def _is_file(filename: str, location: str) -> bool:
    return os.path.abspath(filename) == os.path.abspath(
        location
    )  # no look at the disk: it refuses some names
