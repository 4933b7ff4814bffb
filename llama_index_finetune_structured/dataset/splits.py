"""Train/validation split by a hash of seed and group: rows added later move none of the older ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal

from ..errors import ConfigurationError, DatasetError
from ..example import Example, content_hash

__all__ = ["GroupBy", "document_of", "group_names", "train_mask", "unit_hash"]

GroupBy = Literal["document"] | Callable[[Example], str] | None
"""None groups by question, an agent's rows by the first one of their conversation, "document" by document id; a
callable names the group of an Example."""


def train_mask(examples: Sequence[Example], fraction: float, group_by: GroupBy, seed: int) -> list[bool]:
    """For each example whether it goes to train; see FinetuneDataset.split for the rule.

    Raises ConfigurationError for a wrong ``fraction`` or ``group_by``, DatasetError with fewer than two groups.
    """
    if not 0 < fraction < 1:
        raise ConfigurationError(f"fraction: {fraction!r}, expected a share between 0 and 1 (0.7: 70% train)")
    if not examples:
        raise DatasetError("split: the data set is empty; load or capture examples first")
    names = group_names(examples, group_by)
    hashes = {name: unit_hash(seed, name) for name in set(names)}
    if len(hashes) < 2:
        raise DatasetError(_one_group(len(examples), group_by))
    train = {name for name, value in hashes.items() if value < fraction}
    # Neither side may be empty: move the group nearest to the border. Ties are broken by name.
    if not train:
        train.add(min(hashes, key=lambda name: (hashes[name], name)))
    elif len(train) == len(hashes):
        train.remove(max(hashes, key=lambda name: (hashes[name], name)))
    return [name in train for name in names]


def unit_hash(seed: int, name: str) -> float:
    """A hash of ``seed`` and ``name`` as a number in [0, 1): the same on every machine and in every run."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _one_group(rows: int, group_by: GroupBy) -> str:
    if group_by == "document":
        return (
            f"split: all {rows} examples come from one document, which cannot be divided; "
            "add examples of another document, or split by question with group_by=None"
        )
    if group_by is None:
        return f"split: all {rows} examples ask the same question; at least two questions are needed"
    return f"split: group_by put all {rows} examples in one group; at least two groups are needed"


def group_names(examples: Sequence[Example], group_by: GroupBy) -> list[str]:
    """The group of each example. Raises DatasetError where an example has none."""
    if group_by is None:
        return [_question(e) for e in examples]
    if callable(group_by):
        return [_group_name(group_by(e), row) for row, e in enumerate(examples)]
    if group_by != "document":
        raise ConfigurationError(f"group_by: {group_by!r}, expected None, 'document' or a callable")
    documents = [document_of(e) for e in examples]
    missing = [row for row, name in enumerate(documents) if name is None]
    if missing:
        raise DatasetError(
            f"split: {len(missing)} of {len(examples)} examples name no document (the first is row "
            f"{missing[0]}); set document_id, or give group_by a function of the Example"
        )
    return [name for name in documents if name is not None]


def _group_name(name: object, row: int) -> str:
    if not isinstance(name, str):
        raise DatasetError(f"split: group_by returned {type(name).__name__} for row {row}, expected a str")
    return name


def _question(example: Example) -> str:
    if example.query is not None:
        return example.query
    if example.is_agent_turn:
        return example.conversation
    return content_hash([m.wire() for m in example.messages])


def document_of(example: Example) -> str | None:
    """The example's ``document_id`` or, where it has none, that of the first retrieved chunk with one."""
    if example.document_id is not None:
        return example.document_id
    return next((s.document_id for s in example.sources if s.document_id is not None), None)
