"""The Pydantic class of an answer by its import path, for rows that carry the path: looked up, never imported.

A class that was made known in this process, or whose module is imported already, is found. Data from a file never
causes code to run: where its class is not there, the row's JSON schema decides.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from weakref import WeakValueDictionary

from pydantic import BaseModel

from .answer_values import class_schema
from .errors import ConfigurationError
from .example import Example, content_hash

__all__ = ["class_of", "class_path"]

# By path and schema: local classes, and those of modules that were replaced, are found here alone.
_known: WeakValueDictionary[tuple[str, str], type[BaseModel]] = WeakValueDictionary()


def class_path(output_cls: type[BaseModel]) -> str:
    """The ``module:Class`` under which ``class_of`` finds a class in this process, and in others that import it."""
    path = f"{output_cls.__module__}:{output_cls.__qualname__}"
    _known[path, _schema_hash(output_cls)] = output_cls
    return path


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
    found = _imported(path)
    return found if found is not None and _has_schema(found, schema) else None


def _imported(path: str) -> type[BaseModel] | None:
    """The class of that path in a module that is imported; attributes are not read, which may run code."""
    module, _, name = path.partition(":")
    found: object = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None


def _has_schema(output_cls: type[BaseModel], schema: str) -> bool:
    try:
        return _schema_hash(output_cls) == schema
    except ConfigurationError:
        return False
