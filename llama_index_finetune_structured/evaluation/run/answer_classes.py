"""Which classes judge answers where none is given: those that the examples name, or the systems for their schemas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from ...answer_classes import class_of
from ...example import Example
from ...local.schema.bounds import schema_key
from ...printable import package_logger
from .systems import System
from .target import JSON_SCHEMA, AnswerTarget

__all__ = ["tell_absent_classes", "with_classes"]

_log = package_logger(__name__)


def with_classes(examples: Iterable[Example], systems: Iterable[System]) -> Iterator[Example]:
    """The examples, with the class that a system names for their schema where their own is not there."""
    names: dict[str, str] = {}
    for system in systems:
        names |= getattr(system, "answer_classes", None) or {}
    for example in examples:
        if names and example.answer_schema is not None and class_of(example) is None:
            path = names.get(schema_key(example.answer_schema), example.answer_class)
            yield example.model_copy(update={"answer_class": path})
        else:
            yield example


def tell_absent_classes(targets: Iterable[AnswerTarget]) -> None:
    """Log the classes that examples name and that are not there, since JSON schemas judge in their place."""
    absent = Counter(
        t.example.answer_class for t in targets if t.judge == JSON_SCHEMA and t.example.answer_class
    )
    for path, count in absent.items():
        _log.warning(
            "%d examples are judged by their JSON schema alone: %s is not imported, or has another schema now; import "
            "it first, or pass output_cls=",
            count,
            path,
        )
