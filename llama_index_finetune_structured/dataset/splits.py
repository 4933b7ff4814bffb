"""Which examples go to train: by hash of seed and group, so that growing data moves nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal

from ..errors import ConfigurationError, DatasetError
from ..example import Example, content_hash

__all__ = ["GroupBy", "assign", "document_of", "group_names", "place"]

GroupBy = Literal["document"] | Callable[[Example], str] | None


def assign(examples: Sequence[Example], fraction: float, group_by: GroupBy, seed: int) -> list[bool]:
    """For each example whether it trains. Raises DatasetError with fewer than two groups."""
    if not 0 < fraction < 1:
        raise ConfigurationError(f"fraction: {fraction!r}, expected a share between 0 and 1 (0.7: 70% train)")
    if not examples:
        raise DatasetError("split: the data set is empty; load or capture examples first")
    names = group_names(examples, group_by)
    places = {name: place(seed, name) for name in set(names)}
    if len(places) < 2:
        raise DatasetError(_one_group(len(examples), group_by))
    train = {name for name, place in places.items() if place < fraction}
    if not train:
        train.add(min(places, key=lambda name: (places[name], name)))
    elif len(train) == len(places):
        train.remove(max(places, key=lambda name: (places[name], name)))
    return [name in train for name in names]


def place(seed: int, name: str) -> float:
    """A number from 0 up to 1 that only seed and name decide."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _one_group(rows: int, group_by: GroupBy) -> str:
    if group_by == "document":
        return (
            f"split: all {rows} examples come from one document, and a document stays on one side; "
            "add examples of another document, or split by question with group_by=None"
        )
    if group_by is None:
        return f"split: the {rows} examples ask one and the same question; two are needed at least"
    return f"split: group_by put all {rows} examples in one group; two groups are needed at least"


def group_names(examples: Sequence[Example], group_by: GroupBy) -> list[str]:
    """The group of each example. Raises DatasetError where one has none."""
    if group_by is None:
        return [_question(e) for e in examples]
    if callable(group_by):
        return [_named(group_by(e), row) for row, e in enumerate(examples)]
    if group_by != "document":
        raise ConfigurationError(f"group_by: {group_by!r}, expected None, 'document' or a callable")
    documents = [document_of(e) for e in examples]
    without = [row for row, name in enumerate(documents) if name is None]
    if without:
        raise DatasetError(
            f"split: {len(without)} of {len(examples)} examples name no document (the first is row "
            f"{without[0]}); set document_id, or give group_by a function of the Example"
        )
    return [name for name in documents if name is not None]


def _named(name: object, row: int) -> str:
    if not isinstance(name, str):
        raise DatasetError(f"split: group_by gave {type(name).__name__} for row {row}, expected a str")
    return name


def _question(example: Example) -> str:
    if example.query is not None:
        return example.query
    return content_hash([m.wire() for m in example.messages])


def document_of(example: Example) -> str | None:
    """The example's document: its own or, failing that, the first retrieved node's."""
    if example.document_id is not None:
        return example.document_id
    return next((s.document_id for s in example.sources if s.document_id is not None), None)
