"""What an answer must look like, by name: a YAML file, ``file.py:Class`` or ``module:Class``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from pydantic import BaseModel

from ...errors import ConfigurationError
from ...example import content_hash
from .yaml import class_of

__all__ = ["load_schema"]

_FORMS = "expected schema.yaml, schema.py:Class or package.module:Class"


def load_schema(source: str | Path) -> type[BaseModel]:
    """The Pydantic class that answers must fit: of a YAML file, ``file.py:Class`` or ``module:Class``.

    A YAML file has ``name``, ``fields`` and maybe ``description`` and ``types``. A field is its type, or a
    mapping of ``type`` or ``enum``, ``description``, ``optional``, ``min`` and ``max`` (of a number's value, a
    string's characters, a list's items). Types: string, integer, number, boolean,
    date, datetime, ``list of ...`` any, and the names under ``types``, which have ``fields`` or ``enum``
    themselves; a ``?`` at the end makes a field optional. Python files and modules are imported, hence run.
    Raises ConfigurationError naming file, line or class.
    """
    text = str(source)
    if Path(text).suffix.lower() in (".yaml", ".yml", ".json"):
        return class_of(Path(text))
    place, colon, name = text.rpartition(":")
    if not colon:
        known = _classes(_module(text)) if text.endswith(".py") else {}
        raise ConfigurationError(
            f"schema {text!r}: {_which(known)}" if known else f"schema {text!r}: {_FORMS}"
        )
    module = _module(place)
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        what = "no class of that name" if found is None else "not a Pydantic class"
        raise ConfigurationError(f"schema {text!r}: {what} in {place}; {_which(_classes(module))}")
    return found


def _which(known: dict[str, type[BaseModel]]) -> str:
    return f"Pydantic classes there: {', '.join(known) or 'none'}; name one after a colon"


def _classes(module: ModuleType) -> dict[str, type[BaseModel]]:
    """The Pydantic classes that a module defines itself."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, BaseModel) and value.__module__ == module.__name__
    }


def _module(place: str) -> ModuleType:
    path = Path(place)
    if not place.endswith(".py"):
        with _importable(Path.cwd(), place):
            return importlib.import_module(place)
    if not path.is_file():
        raise ConfigurationError(f"schema {place}: no such file; {_FORMS}")
    name = f"_finetune_schema_{content_hash(str(path.resolve()))[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"schema {place}: cannot be imported; {_FORMS}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Pydantic looks up forward references there
    with _importable(path.resolve().parent, place):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _importable(folder: Path, place: str) -> Iterator[None]:
    """``folder`` first on the import path; whatever the user's code raises becomes one clear error."""
    sys.path.insert(0, str(folder))
    try:
        yield
    except Exception as error:
        raise ConfigurationError(
            f"schema {place}{_line(place, error)}: cannot be imported ({type(error).__name__}: {error}); {_FORMS}"
        ) from error
    finally:
        sys.path.remove(str(folder))


def _line(place: str, error: Exception) -> str:
    if isinstance(error, SyntaxError) and _is(error.filename or "", place):
        return f":{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is(frame.filename, place)]
    return f":{frames[-1].lineno}" if frames else ""


def _is(filename: str, place: str) -> bool:
    return Path(filename).resolve() == Path(place).resolve()
