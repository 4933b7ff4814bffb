"""The Pydantic class of an answer by its import path, for rows that carry the path: looked up, never imported.

A class that was made known in this process, or whose module is imported already, is found. Data from a file never
causes code to run: where its class is not there, the row's JSON schema decides.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import PurePath
from weakref import WeakValueDictionary

from pydantic import BaseModel

from .answer_values import class_schema
from .errors import ConfigurationError
from .example import Example, content_hash

__all__ = ["FILE_MODULE", "class_of", "class_path", "classes_named", "is_importable"]

FILE_MODULE = "_finetune_schema_"
"""What the names of modules begin with that were loaded from ``file.py:Class``; rows name their classes so, too."""

_IMPORT_PATH = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*|[\w.-]+\.py:[^\W\d]\w*")
# By path and schema: local classes, and those of modules that were replaced, are found here alone.
_known: WeakValueDictionary[tuple[str, str], type[BaseModel]] = WeakValueDictionary()


def class_path(output_cls: type[BaseModel]) -> str:
    """The ``module:Class`` under which ``class_of`` finds a class in this process, and in others that import it.

    ``file.py:Class`` where that is how it was loaded.
    """
    module = output_cls.__module__
    place = _file_name(module) if module.startswith(FILE_MODULE) else module
    path = f"{place}:{output_cls.__qualname__}"
    _known[path, _schema_hash(output_cls)] = output_cls
    return path


def is_importable(path: str) -> bool:
    """Whether another process can import what a path names, or load it as ``file.py:Class``."""
    return _IMPORT_PATH.fullmatch(path) is not None and not path.startswith(("__main__:", FILE_MODULE))


def _file_name(module: str) -> str:
    return PurePath(getattr(sys.modules.get(module), "__file__", None) or module).name


@lru_cache(maxsize=256)
def _schema_hash(output_cls: type[BaseModel]) -> str:
    return content_hash(class_schema(output_cls))


def class_of(example: Example) -> type[BaseModel] | None:
    """The class of an example's answer; None where the example names none, or it is not there with the same schema."""
    path, schema = example.answer_class, example.schema_hash
    if path is None or schema is None:
        return None
    if (known := _known.get((path, schema))) is not None:
        return known
    return next((cls for cls in classes_named(path) if _has_schema(cls, schema)), None)


def classes_named(path: str) -> Iterator[type[BaseModel]]:
    """The classes of that path that are known here, or in modules that are imported.

    Attributes are not read, which may run code.
    """
    yield from [cls for (known, _), cls in list(_known.items()) if known == path]
    place, _, name = path.partition(":")
    modules = [place]
    if place.endswith(".py"):
        modules = [
            each for each in list(sys.modules) if each.startswith(FILE_MODULE) and _file_name(each) == place
        ]
    for module in modules:
        found: object = sys.modules.get(module)
        for part in name.split("."):
            found = getattr(found, "__dict__", {}).get(part)
        if isinstance(found, type) and issubclass(found, BaseModel):
            yield found


def _has_schema(output_cls: type[BaseModel], schema: str) -> bool:
    try:
        return _schema_hash(output_cls) == schema
    except ConfigurationError:
        return False
